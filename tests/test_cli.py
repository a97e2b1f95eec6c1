import json
import subprocess
import sys
from pathlib import Path

import pytest

from ltx2.media.probe import probe_video
from processes import ROOT, environment

SMALL = {"prompt": "a lamp", "width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 1, "seed": 2}


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "ltx2.cli", *arguments],
        env=environment(folder / "data"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_becomes_a_film_and_a_report(tmp_path: Path, wrapped: bool) -> None:
    (tmp_path / "input.json").write_text(json.dumps({"input": SMALL} if wrapped else SMALL))
    output = tmp_path / "new" / "film.mp4"
    done = run(tmp_path, "--input", str(tmp_path / "input.json"), "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert probe_video(output).num_frames == 9
    lines = done.stdout.splitlines()
    assert lines[-1] == str(output)
    assert "64x64, 9 frames at 25 fps" in done.stdout
    assert "h264 yuv420p, aac 24000 Hz" in done.stdout
    assert "random miniature" in done.stdout
    for phase in ("loading", "encoding", "denoising", "decoding", "muxing"):
        assert phase in lines[-2]


def test_a_name_that_says_another_format_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text(json.dumps(SMALL | {"output_format": "webm"}))
    done = run(tmp_path, "--input", str(tmp_path / "input.json"), "--output", str(tmp_path / "film.mp4"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "film.mp4 is no name for a webm file" in done.stderr
    assert not (tmp_path / "film.mp4").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ('{"prompt": ""}', "prompt: must not be empty"),
        ('{"prompt": "x", "width": 65}', "width: "),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "input.json").write_text(content)
    done = run(tmp_path, "--input", str(tmp_path / "input.json"))
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
