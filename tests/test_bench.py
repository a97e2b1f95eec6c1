"""The benches that are run by hand still run."""

import re

import pytest
import torch

from bench import gpu
from ltx2.model.memory import PARAMETERS


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure the GPU for minutes")
def test_without_a_gpu_nothing_is_said_about_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main() == 0
    said = capsys.readouterr().out
    assert "Figures of GPUs remain unmeasured." in said
    for precision in ("bf16", "fp8"):
        figures = said.split(f"tiny, {precision},")[1].split("\n  all")[0]
        assert "predicted peak" in figures
        seconds = dict(re.findall(r"^  (\w+) +([\d.]+) s", figures, re.MULTILINE))
        assert seconds.keys() == {"encoding", "denoising", "decoding", "muxing"}
        assert float(seconds["denoising"]) > 0


def test_full_size_parts_have_random_weights_in_host_memory() -> None:
    source = gpu.RandomSource("2.0", torch.device("cpu"))
    # the official counts include the statistics of the latents, which are no parameters here
    counted = {part: source.parameters(part) for part in source.parts()}
    assert counted == pytest.approx(PARAMETERS["2.0"], abs=256)
    vocoder = source.load("vocoder", torch.float32)
    assert {weight.device.type for weight in vocoder.parameters()} == {"cpu"}
    assert all(bool(weight.isfinite().all()) for weight in vocoder.parameters())
    assert float(next(vocoder.parameters()).std()) == pytest.approx(0.02, rel=0.05)
