import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from variables import set_environment

from ltx2 import cli, imprint
from ltx2.media.probe import probe_video
from ltx2.media.tags import append_to_wav, read_comment
from processes import ROOT, environment

Capture = pytest.CaptureFixture[str]

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


def test_a_file_becomes_a_film_and_a_report(tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text(json.dumps(SMALL))
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


def test_what_was_left_to_the_model_is_told(
    tmp_path: Path, main: Callable[..., int], capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "input.json").write_text(json.dumps(SMALL | {"num_frames": None, "enhance_prompt": True}))
    assert main("--input", tmp_path / "input.json", "--output", tmp_path / "film.mp4") == 0
    written = imprint.read_imprint(read_comment(tmp_path / "film.mp4"), "film.mp4").request
    assert written is not None
    told = "".join(letter if letter.isprintable() else "\ufffd" for letter in written["prompt"])
    assert f"prompt: {told}\n" in capsys.readouterr().out
    assert "49 frames, seed 2" in caplog.text
    assert "None" not in caplog.text


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


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The program in this process, which has torch already."""
    set_environment(monkeypatch, {"LTX2_DATA_DIR": tmp_path / "data", "LTX2_VIDEO_PRESET": "ultrafast"})
    return lambda *arguments: cli.main([str(argument) for argument in arguments])


def test_a_clip_is_made_again_from_its_file_alone(
    tmp_path: Path, main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    small = {"prompt": 'a "lamp" \U0001f4a1', "width": 64, "height": 64, "num_frames": 9}
    (tmp_path / "input.json").write_text(json.dumps({"input": small}))  # as a RunPod job has it
    first, again = tmp_path / "first.mp4", tmp_path / "again.mp4"
    assert main("--input", tmp_path / "input.json", "--output", first) == 0
    (tmp_path / "input.json").unlink()
    # the server has other defaults now
    monkeypatch.setenv("LTX2_VIDEO_CRF", "30")
    monkeypatch.setenv("LTX2_VIDEO_PRESET", "veryfast")
    assert main("--again", first, "--output", again) == 0
    assert again.read_bytes() == first.read_bytes()
    assert "warning" not in capsys.readouterr().err


def test_a_clip_of_an_image_is_made_again_with_that_image(
    tmp_path: Path, main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    image = ROOT / "examples" / "start.jpg"
    encoded = base64.b64encode(image.read_bytes()).decode()
    (tmp_path / "input.json").write_text(json.dumps(SMALL | {"image_start": encoded, "output_format": "wav"}))
    first, again = tmp_path / "first.wav", tmp_path / "again.wav"
    assert main("--input", tmp_path / "input.json", "--output", first) == 0
    capsys.readouterr()
    for media, reason in (
        ((), "media that are not here: keyframes[0].image (--media keyframes[0].image=FILE at"),
        (("--media", image), "should be NAME=FILE"),
        (("--media", f"audio={image}"), "made without it; it was made of keyframes[0].image"),
        (("--media", f"keyframes[0].image={first}"), "not what the clip was made of"),
        (("--media", f"keyframes[0].image={tmp_path / 'nowhere'}"), "cannot be read"),
    ):
        assert main("--again", first, "--output", again, *media) == 1
        assert reason in capsys.readouterr().err
    assert not again.exists()
    # on another model it is another clip, and that is said
    monkeypatch.setenv("LTX2_MODEL", "tiny-2.3")
    given = ("--again", first, "--media", f"keyframes[0].image={image}", "--output", again)
    assert main(*given) == 0
    said = capsys.readouterr()
    assert said.err.splitlines() == ["warning: The clip was made with model tiny, and here it is tiny-2.3."]
    assert "note: The clip was made with generation 2.0, and here it is 2.3." in said.out
    assert again.read_bytes() != first.read_bytes()
    monkeypatch.setenv("LTX2_MODEL", "tiny")
    assert main(*given) == 0
    assert again.read_bytes() == first.read_bytes()


def test_what_cannot_be_made_again_is_said(tmp_path: Path, main: Callable[..., int], capsys: Capture) -> None:
    for arguments, reason in (
        (("--again", ROOT / "examples" / "chime.ogg"), "chime.ogg is "),
        (("--again", tmp_path / "nowhere.mp4"), "cannot be read"),
        (("--input", ROOT / "test_input.json", "--media", "a=b"), "it goes with --again"),
    ):
        assert main(*arguments) == 1
        assert reason in capsys.readouterr().err


def test_what_a_file_says_is_no_word_to_the_terminal(tmp_path: Path, main: Callable[..., int], capsys: Capture) -> None:
    said, strange = "\x1b]0;ours\x07\x9b2J\u202e\nerror: none", tmp_path / "strange.wav"
    provenance = {"model": said, "seed": 1, "versions": {said: said}, "loras": {said: said}}
    for request in ({"prompt": "x", "image_start": said}, {"prompt": "x", said: 1}, {"prompt": "x", "fps": 1000}):
        soundfile.write(strange, np.zeros(9), 48_000)
        append_to_wav(strange, json.dumps({"ltx2": "1", "request": request, "provenance": provenance}))
        assert main("--again", strange, "--media", f"image_start={strange}") == 1
        told = capsys.readouterr().err.splitlines()
        assert told[-1].startswith("error: ")
        assert all(line.isprintable() and line != "error: none" for line in told)
