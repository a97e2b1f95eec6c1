"""The clients that existing users have, unchanged but for the address and the placeholders."""

import base64
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image

from ltx2.media.probe import probe_video
from processes import Server

SEED = Path(__file__).parent / "data" / "seed"


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with the files the seed's clients read."""
    for name, colour in (("start.png", (200, 60, 40)), ("end.png", (40, 60, 200))):
        Image.new("RGB", (96, 160), colour).save(tmp_path / name)
    tone = 0.3 * np.sin(2 * np.pi * 330 * np.arange(16_000) / 16_000)
    for name in ("speech.wav", "input.wav"):
        soundfile.write(tmp_path / name, tone, 16_000)
    return tmp_path


def run(command: list[str], folder: Path, **variables: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_python_client_works_in_every_form_it_shows(server: Server, media: Path) -> None:
    code = (SEED / "client.py").read_text().replace("http://localhost:8000", server.url)
    assert server.url in code
    (media / "client.py").write_text(code)
    said = run([sys.executable, "client.py"], media)
    assert said.count("Saved: output.mp4") == 5
    # text; start image; start and end image; audio; preview
    assert [line.endswith("True") for line in said.splitlines() if "Image start" in line] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert [line.endswith("True") for line in said.splitlines() if "Image end" in line].count(True) == 1
    assert said.count("Has audio: True") == 5
    facts = probe_video(media / "output.mp4")  # the last one, the preview
    assert (facts.width, facts.height, facts.num_frames, facts.fps) == (288, 512, 9, Fraction(25))


def test_the_bash_script_works(server: Server, media: Path) -> None:
    said = run(["bash", str(SEED / "script.sh")], media, LTX_SERVER=server.url)
    assert "Saved: cat_piano.mp4 (1.96s" in said
    assert probe_video(media / "cat_piano.mp4").num_frames == 49


def test_every_curl_line_works(server: Server, media: Path) -> None:
    images = {
        name: base64.b64encode((media / file).read_bytes()).decode()
        for name, file in (("<BASE64_IMAGE>", "start.png"), ("<START_IMAGE>", "start.png"), ("<END_IMAGE>", "end.png"))
    }
    script = (SEED / "curl.sh").read_text() + "\n" + (SEED / "curl_audio.sh").read_text()
    for placeholder, value in {"http://<SERVER>:8000": server.url, **images}.items():
        assert placeholder in script
        script = script.replace(placeholder, value)
    answers = run(["bash", "-c", script], media)
    decoder, results = json.JSONDecoder(), []
    while answers:
        result, end = decoder.raw_decode(answers)
        results.append(result)
        answers = answers[end:].lstrip()
    assert [result["mode"] for result in results] == [
        "T2V+Audio",
        "T2V+Audio",
        "T2V+Audio",
        "I2V",
        "I2V(first+last)",
        "A2V",
    ]


def test_the_body_and_the_answer_are_the_documents(server: Server) -> None:
    body = json.loads((SEED / "body.json").read_text())
    body |= {"num_frames": 9, "num_inference_steps": 2}
    answer = httpx.post(server.url + "/generate", json=body, timeout=60).raise_for_status().json()
    documented = json.loads((SEED / "response.json").read_text())
    assert documented.keys() <= answer.keys()
    for key, value in documented.items():
        assert type(answer[key]) is type(value), key
    assert answer["video"].startswith("data:video/mp4;base64,")
    assert not {"error", "detail"} & answer.keys()  # the seed's client takes these for a failure


def test_the_other_endpoints_answer(server: Server, tmp_path: Path) -> None:
    script = (SEED / "endpoints.sh").read_text().replace("http://<SERVER>:8000", server.url)
    said = run(["bash", "-c", script], tmp_path)
    assert '"status":"healthy"' in said
    assert '"defaults":{' in said
    assert "swagger" in httpx.get(server.url + "/docs").text.lower()
