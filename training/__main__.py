"""``python -m training PART``: train a part, or go on with it."""

import argparse
import importlib

import torch

PARTS = ("video_vae", "audio_vae", "vocoder", "text", "upsampler", "transformer", "distilled", "glow")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after these, to go on another time")
    parser.add_argument("--steps", type=int, help="in all, instead of the number the shipped weights had")
    parser.add_argument("--threads", type=int, help="of torch")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    part = importlib.import_module(f"training.{asked.part}")
    more = {} if asked.steps is None else {"steps": asked.steps}
    run = part.run(minutes=asked.minutes, **more)
    done = run.train()
    print(f"{run.name}: {run.step} of {run.steps} steps" + ("" if done else "; the same command goes on"))


if __name__ == "__main__":
    main()
