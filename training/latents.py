"""Clips of the world as latents, written once: encoding costs more than a step of the transformer.

``python -m training.latents [SIZE …]``: these sizes or all of them, those that are missing.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ltx2.geometry import audio_latent_frames, exact_fps
from ltx2.model.conditioning import pack_audio
from ltx2.model.mel import SAMPLE_RATE, log_mel
from training import frozen, pictures, sounds
from training.loop import RUNS
from training.world import Motion, Scene

LATENTS = RUNS / "latents"
KEYFRAMES = 3
"""Images of each clip, encoded by themselves: its last frame, and others."""


@dataclass(frozen=True)
class Size:
    """Clips of one size, and how many of them."""

    width: int
    height: int
    frames: int
    fps: float
    count: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.width}x{self.height}x{self.frames}at{self.fps:g}"

    @property
    def path(self) -> Path:
        """Where its latents are."""
        return LATENTS / f"{self.name}.pt"


SIZES: Final = (
    Size(160, 96, 17, 24, 3000),
    Size(128, 128, 17, 24, 1500),
    Size(96, 160, 17, 25, 1500),
    Size(160, 96, 33, 24, 1200),
    Size(160, 96, 17, 12, 500),
    Size(256, 160, 25, 24, 1500),
    Size(160, 256, 25, 25, 1000),
    Size(256, 160, 25, 30, 500),
    Size(256, 160, 49, 24, 300),
    Size(288, 512, 49, 25, 200),
    Size(512, 288, 49, 24, 100),
)
"""From small to large: most is learned where a step costs least."""


@torch.inference_mode()
def encode(size: Size) -> dict[str, Any]:
    """The latents of a size: video ``[N, 128, F, h, w]``, audio ``[N, T, 128]``, images ``[N, K, 128, 1, h, w]``."""
    video_vae, audio_vae = frozen.load("vae"), frozen.load("audio_vae")
    rng = np.random.default_rng((7, size.width, size.height, size.frames, int(size.fps)))
    tokens = audio_latent_frames(size.frames, exact_fps(size.fps))
    found: dict[str, list[Any]] = {"video": [], "audio": [], "images": [], "at": [], "scenes": []}
    for _ in range(size.count):
        scene = Scene.draw(rng)
        seen = pictures.frames(scene, size.width, size.height, np.arange(size.frames, dtype=np.float32), size.fps)
        clip = torch.from_numpy(seen).permute(3, 0, 1, 2).float() / 127.5 - 1
        at = [size.frames - 1, *(int(frame) for frame in rng.integers(1, size.frames - 1, KEYFRAMES - 1))]
        stills = clip[:, at].transpose(0, 1)[:, :, None]
        with torch.autocast("cpu", torch.bfloat16):
            video = video_vae.encode(clip[None]).latent_dist.mode().float()
            images = video_vae.encode(stills).latent_dist.mode().float()
            mel = log_mel(torch.from_numpy(sounds.sound(scene, size.frames / size.fps, SAMPLE_RATE)))
            audio = pack_audio(audio_vae.encode(mel[None]).latent_dist.mode().float())[:, :tokens]
        found["video"].append(frozen.normalised(video_vae, video)[0].half())
        found["images"].append(frozen.normalised(video_vae, images).half())
        found["audio"].append(((audio - audio_vae.latents_mean) / audio_vae.latents_std)[0].half())
        found["at"].append(at)
        found["scenes"].append(json.dumps(asdict(scene)))
    tensors: dict[str, Any] = {name: torch.stack(found[name]) for name in ("video", "audio", "images")}
    return tensors | {"at": torch.tensor(found["at"]), "scenes": found["scenes"]}


@dataclass(frozen=True)
class Shelf:
    """The clips of one size."""

    size: Size
    video: Tensor
    audio: Tensor
    images: Tensor
    at: Tensor
    scenes: tuple[Scene, ...]


def shelves() -> list[Shelf]:
    """All that was encoded."""
    found = []
    for size in SIZES:
        if size.path.exists():
            stored = torch.load(size.path, weights_only=True)
            scenes = tuple(_scene(json.loads(text)) for text in stored.pop("scenes"))
            found.append(Shelf(size, **stored, scenes=scenes))
    return found


def _scene(told: dict[str, Any]) -> Scene:
    return Scene(**told | {"motion": Motion(told["motion"])})


def main() -> None:
    """Encode what is missing."""
    LATENTS.mkdir(parents=True, exist_ok=True)
    for size in SIZES:
        if not size.path.exists() and (size.name in sys.argv or len(sys.argv) == 1):
            partial = size.path.with_suffix(".partial")
            torch.save(encode(size), partial)
            partial.replace(size.path)
            print(size.name, flush=True)


if __name__ == "__main__":
    main()
