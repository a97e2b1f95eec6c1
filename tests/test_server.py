"""The server as a process of its own, with the tiny model, asked over HTTP."""

import base64
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image

from ltx2.media.audio import decode_audio
from ltx2.media.probe import probe_video
from processes import ROOT, Server, environment, free_port, running_server, wait_until_warm

SMALL = {"prompt": "a lamp", "width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 1}


def generate(server: Server, **fields: Any) -> httpx.Response:
    return httpx.post(server.url + "/generate", json=SMALL | fields, timeout=120)


def pictures(answer: httpx.Response) -> np.ndarray:
    """The frames of the film in an answer."""
    film = base64.b64decode(answer.json()["video"].split(",")[1])
    with av.open(BytesIO(film)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.float32)


def with_media(fields: dict[str, Any], data: Path) -> dict[str, Any]:
    """The fields with the names of files replaced by their bytes in base64."""
    text = json.dumps(fields)
    for name in ("photo.jpg", "speech.mp3"):
        text = text.replace(f'"{name}"', f'"{base64.b64encode((data / name).read_bytes()).decode()}"')
    filled: dict[str, Any] = json.loads(text)
    return filled


def saved(answer: dict[str, Any], folder: Path) -> Path:
    path = folder / "answer.mp4"
    path.write_bytes(base64.b64decode(answer["video"].removeprefix("data:video/mp4;base64,"), validate=True))
    return path


def sound_of(path: Path) -> tuple[np.ndarray, int]:
    """The decoded sound track, ``[channels, samples]``, and its rate."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        blocks = [frame.to_ndarray() for frame in container.decode(stream)]
        return np.concatenate(blocks, axis=1), stream.sample_rate


def test_a_photograph_and_speech_become_a_film_with_that_speech(server: Server, data: Path, tmp_path: Path) -> None:
    answer = generate(
        server,
        prompt="A person speaking in front of a camera",
        width=288,
        height=512,
        num_frames=49,
        num_inference_steps=8,
        image_start="data:image/jpeg;base64," + base64.b64encode((data / "photo.jpg").read_bytes()).decode(),
        audio="data:audio/mpeg;base64," + base64.b64encode((data / "speech.mp3").read_bytes()).decode(),
    ).json()
    assert answer["mode"] == "A2V+I2V"
    path = saved(answer, tmp_path)
    facts = probe_video(path)
    assert (facts.width, facts.height, facts.num_frames, facts.fps) == (288, 512, 49, Fraction(25))
    assert (facts.video_codec, facts.pixel_format, facts.audio_codec) == ("h264", "yuv420p", "aac")
    assert facts.audio_sample_rate == 44_100
    assert facts.seconds == pytest.approx(49 / 25)
    assert facts.faststart
    heard, rate = sound_of(path)
    spoken = decode_audio((data / "speech.mp3").read_bytes(), field="audio", max_seconds=60)
    assert rate == spoken.sample_rate
    length = round(49 / 25 * rate)
    assert abs(heard.shape[1] - length) <= 1024  # the last AAC frame is filled up
    assert np.corrcoef(heard[0, :length], spoken.samples[0, :length])[0, 1] > 0.95


@pytest.mark.parametrize(
    ("name", "field", "media_type", "head"),
    [
        ("mov", "video", "video/quicktime", b"\0\0\0\x14ftypqt  "),
        ("gif", "video", "image/gif", b"GIF89a"),
        ("wav", "audio", "audio/wav", b"RIFF"),
    ],
)
def test_every_format_comes_under_its_own_type(
    fake_server: Server, name: str, field: str, media_type: str, head: bytes
) -> None:
    answer = generate(fake_server, output_format=name, quality=80).json()
    assert answer.keys() & {"video", "audio"} == {field}
    prefix, encoded = answer[field].split(";base64,")
    assert prefix == f"data:{media_type}"
    assert base64.b64decode(encoded, validate=True).startswith(head)
    assert (answer["output_format"], answer["has_audio"]) == (name, name != "gif")


@pytest.mark.parametrize(
    ("fields", "mode", "has_audio"),
    [
        ({"include_audio": False}, "T2V", False),
        ({}, "T2V+Audio", True),
        ({"image_start": "photo.jpg"}, "I2V", True),
        ({"image_start": "photo.jpg", "image_end": "photo.jpg"}, "I2V(first+last)", True),
        ({"image_end": "photo.jpg"}, "I2V(last)", True),
        ({"keyframes": [{"image": "photo.jpg", "frame": 4, "strength": 0.7}]}, "I2V", True),
        ({"audio": "speech.mp3"}, "A2V", True),
        ({"audio": "speech.mp3", "image_start": "photo.jpg"}, "A2V+I2V", True),
        ({"audio": "speech.mp3", "audio_strength": 0.5}, "A2V", True),
        ({"audio": "speech.mp3", "include_audio": False}, "A2V", False),
        ({"audio": "speech.mp3", "audio_strength": 0}, "T2V+Audio", True),
    ],
)
def test_the_mode_follows_from_what_is_given(
    server: Server, data: Path, tmp_path: Path, fields: dict[str, Any], mode: str, has_audio: bool
) -> None:
    answer = generate(server, **with_media(fields, data)).json()
    assert (answer["mode"], answer["has_audio"]) == (mode, has_audio)
    assert answer["has_image_start"] == ("image_start" in fields)
    assert answer["has_image_end"] == ("image_end" in fields)
    facts = probe_video(saved(answer, tmp_path))
    assert (facts.audio_codec == "aac") == has_audio
    # the track of a strictly followed sound is the sound itself; every other one is the vocoder's
    expected = 44_100 if has_audio and fields.get("audio") and fields.get("audio_strength", 1) == 1 else 24_000
    assert facts.audio_sample_rate == (expected if has_audio else None)


@pytest.mark.parametrize(
    ("width", "height", "num_frames", "fps", "exact"),
    [
        (66, 94, 10, 25, Fraction(25)),
        (768, 432, 3, 23.976, Fraction(24000, 1001)),
        (64, 64, 1, 24, Fraction(24)),
        (64, 64, 17, 29.97, Fraction(30000, 1001)),
        (64, 64, 8, 12.5, Fraction(25, 2)),
    ],
)
def test_the_film_is_exactly_as_asked(
    server: Server, tmp_path: Path, width: int, height: int, num_frames: int, fps: float, exact: Fraction
) -> None:
    answer = generate(server, width=width, height=height, num_frames=num_frames, fps=fps).json()
    facts = probe_video(saved(answer, tmp_path))
    assert (facts.width, facts.height, facts.num_frames, facts.fps) == (width, height, num_frames, exact)
    assert answer["resolution"] == f"{width}x{height}"
    assert answer["fps"] == fps


def test_the_answer_says_what_the_model_is_and_what_was_done(server: Server) -> None:
    answer = generate(server, seed=7).json()
    assert answer["seed"] == 7
    assert answer["model"] == "tiny"
    assert any("random miniature" in warning for warning in answer["warnings"])
    assert any("made for 8 steps" in warning for warning in answer["warnings"])
    assert {"loading", "encoding", "denoising", "decoding", "muxing"} <= answer["phase_seconds"].keys()


def test_the_answer_says_how_the_clip_came_out(server: Server) -> None:
    normal = generate(server, retry_if=["silent", "frozen"]).json()
    assert (normal["quality"]["frozen_frames"], normal["quality"]["black_frames"], normal["retried_for"]) == (0, 0, [])
    assert normal["quality"]["silence"] < 0.5
    assert 0 < normal["quality"]["audio_video_seconds"] < 0.1  # a vocoder gives a little less
    file = BytesIO()
    soundfile.write(file, np.zeros(24_000), 24_000, format="WAV")
    silent = generate(server, audio=base64.b64encode(file.getvalue()).decode(), retry_if=["silent"]).json()
    assert (silent["quality"]["silence"], silent["quality"]["peak_dbfs"], silent["retried_for"]) == (1, None, [])
    flaws = {"The sound is silent.", "The picture does not move."}
    assert (flaws & {*normal["warnings"]}, flaws & {*silent["warnings"]}) == (set(), {"The sound is silent."})
    pictures_only = generate(server, include_audio=False).json()
    assert pictures_only["quality"]["silence"] is None


def test_the_same_seed_makes_the_same_film_and_another_one_another(server: Server) -> None:
    first, other, *again = (generate(server, seed=seed) for seed in (5, 6, *[5] * 8))
    # byte by byte, and several times: x264 is not always the same where it is not told to
    assert {answer.json()["video"] for answer in again} == {first.json()["video"]}
    assert np.abs(pictures(first) - pictures(other)).mean() > 5
    assert generate(server).json()["seed"] != generate(server).json()["seed"]


def test_health_and_index(server: Server) -> None:
    health = httpx.get(server.url + "/health").json()
    assert health["status"] == "healthy"
    assert health["warm"] is True
    assert health["queue_len"] == 0
    (loaded,) = health["memory"]["loaded"]
    assert (loaded["name"], loaded["ttl_s"], loaded["expires_in_s"]) == ("tiny", None, None)
    assert loaded["weight_gb"] > 0
    assert (health["ready"], health["fake"], health["restarts"]) == (True, False, 0)
    assert health["memory"]["budget_gb"] > health["memory"]["resident_gb"] > 0
    index = httpx.get(server.url + "/").json()
    assert index["defaults"]["num_frames"] == 49
    assert index["endpoints"]["POST /generate"] == "Generate a video"
    paths = httpx.get(server.url + "/openapi.json").json()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert index["endpoints"].keys() == routes | {"GET /docs"}
    assert all(index["endpoints"].values())


PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\x00" * 50).decode()
TEXT = base64.b64encode(b"just some words, neither picture nor sound").decode()
BAD = {
    "no prompt": ({"prompt": None}, "prompt", "invalid_request"),
    "empty prompt": ({"prompt": ""}, "prompt", "invalid_request"),
    "blank prompt": ({"prompt": " \n"}, "prompt", "invalid_request"),
    "NUL in prompt": ({"prompt": "a\x00b"}, "prompt", "invalid_request"),
    "prompt is a number": ({"prompt": 5}, "prompt", "invalid_request"),
    "long prompt": ({"prompt": "x" * 10_001}, "prompt", "invalid_request"),
    "long negative prompt": ({"negative_prompt": "x" * 10_001}, "negative_prompt", "invalid_request"),
    "bool for int": ({"width": True}, "width", "invalid_request"),
    "string for int": ({"width": "64"}, "width", "invalid_request"),
    "float for int": ({"width": 64.5}, "width", "invalid_request"),
    "odd width": ({"width": 65}, "width", "invalid_request"),
    "odd height": ({"height": 433}, "height", "invalid_request"),
    "tiny width": ({"width": 2}, "width", "invalid_request"),
    "negative height": ({"height": -64}, "height", "invalid_request"),
    "too many pixels": ({"width": 4096, "height": 4096}, "width", "invalid_request"),
    "no frames": ({"num_frames": 0}, "num_frames", "invalid_request"),
    "a billion frames": ({"num_frames": 10**9}, "num_frames", "invalid_request"),
    "too many frames": ({"num_frames": 1442}, "num_frames", "invalid_request"),
    "frames as text": ({"num_frames": "many"}, "num_frames", "invalid_request"),
    "fps 0": ({"fps": 0}, "fps", "invalid_request"),
    "fps 1000": ({"fps": 1000}, "fps", "invalid_request"),
    "fps is a bool": ({"fps": True}, "fps", "invalid_request"),
    "negative guidance": ({"guidance_scale": -1}, "guidance_scale", "invalid_request"),
    "guidance as text": ({"guidance_scale": "3"}, "guidance_scale", "invalid_request"),
    "guidance twice": ({"guidance_scale": 3, "guidance": {"video_cfg": 3}}, "guidance.video_cfg", "invalid_request"),
    "unknown guidance": ({"guidance": {"cfg": 3}}, "guidance.cfg", "invalid_request"),
    "rescale over 1": ({"guidance": {"video_rescale": 1.1}}, "guidance.video_rescale", "invalid_request"),
    "no steps": ({"num_inference_steps": 0}, "num_inference_steps", "invalid_request"),
    "too many steps": ({"num_inference_steps": 101}, "num_inference_steps", "invalid_request"),
    "seed of 10^30": ({"seed": 10**30}, "seed", "invalid_request"),
    "negative seed": ({"seed": -1}, "seed", "invalid_request"),
    "strength over 1": ({"image_strength": 1.5}, "image_strength", "invalid_request"),
    "end strength below 0": ({"image_end_strength": -0.1}, "image_end_strength", "invalid_request"),
    "audio strength over 1": ({"audio_strength": 2}, "audio_strength", "invalid_request"),
    "audio start below 0": ({"audio_start": -1}, "audio_start", "invalid_request"),
    "include_audio as int": ({"include_audio": 1}, "include_audio", "invalid_request"),
    "crf 52": ({"crf": 52}, "crf", "invalid_request"),
    "unknown field": ({"num_frame": 9}, "num_frame", "invalid_request"),
    "image is a number": ({"image_start": 5}, "image_start", "invalid_request"),
    "not base64": ({"image_start": "hello, world!"}, "image_start", "unsupported_media"),
    "empty image": ({"image_start": ""}, "image_start", "invalid_request"),
    "broken PNG": ({"image_end": PNG}, "image_end", "unsupported_media"),
    "text as image": ({"image_start": TEXT}, "image_start", "unsupported_media"),
    "text as sound": ({"audio": TEXT}, "audio", "unsupported_media"),
    "image as sound": ({"audio": "photo.jpg"}, "audio", "unsupported_media"),
    "sound as image": ({"image_start": "speech.mp3"}, "image_start", "unsupported_media"),
    "sound as keyframe": (
        {"keyframes": [{"image": "speech.mp3", "frame": 1}]},
        "keyframes[0].image",
        "unsupported_media",
    ),
    "URL as image": ({"image_start": "http://127.0.0.1/a.png"}, "image_start", "url_not_allowed"),
    "file URL as sound": ({"audio": "file:///etc/passwd"}, "audio", "url_not_allowed"),
    "negative frame": ({"keyframes": [{"image": TEXT, "frame": -1}]}, "keyframes[0].frame", "invalid_request"),
    "frame beyond the end": ({"keyframes": [{"image": TEXT, "frame": 9}]}, "keyframes[0].image", "invalid_request"),
    "two images on one frame": (
        {"image_start": TEXT, "keyframes": [{"image": TEXT, "frame": 0}]},
        "keyframes[0].image",
        "invalid_request",
    ),
    "start and end of one frame": (
        {"image_start": TEXT, "image_end": TEXT, "num_frames": 1},
        "image_end",
        "invalid_request",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(server: Server, data: Path, case: str) -> None:
    fields, field, code = BAD[case]
    answer = generate(server, **with_media(fields, data))
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["field"], error["code"]) == (field, code)
    assert error["request_id"] == answer.headers["X-Request-Id"]
    assert len(answer.content) < 600  # nothing of the body comes back
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        *(
            json.dumps(SMALL | {"fps": None}).replace("null", value)
            for value in ("NaN", "Infinity", "-Infinity", "1e400")
        ),
        json.dumps(SMALL | {"prompt": "\ud800"}),
        "{",
        "[]",
        '"text"',
        "null",
        "",
        "[" * 100_000,
        '{"prompt": ' + '{"a":' * 50_000,
        json.dumps(SMALL | {"seed": 0}).replace('"seed": 0', '"seed": 1' + "0" * 5000),
    ],
    ids=lambda body: body[:20] or "nothing",
)
def test_broken_bodies_are_refused(server: Server, body: str) -> None:
    answer = httpx.post(server.url + "/generate", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text[:300]
    assert answer.json()["error"]["code"] == "invalid_request"
    assert len(answer.content) < 600


def test_raw_bytes_are_refused(server: Server) -> None:
    answer = httpx.post(server.url + "/generate", content=b'{"prompt": "\xff\xfe"}')
    assert answer.status_code == 422


def test_another_content_type_is_refused_with_the_remedy(server: Server) -> None:
    answer = httpx.post(server.url + "/generate", content=json.dumps(SMALL), headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


def test_health_can_be_asked_by_head(server: Server) -> None:
    answer = httpx.head(server.url + "/health")
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_request_id_leads_to_its_log_line(server: Server) -> None:
    answer = generate(server, width=65)
    line = next(line for line in server.log.splitlines() if answer.headers["X-Request-Id"] in line)
    assert "method=POST path=/generate status=422" in line
    assert "a lamp" not in server.log  # what was asked for is nobody's business


def test_a_thin_strip_and_an_odd_rate_are_no_burden(server: Server) -> None:
    strip, tone = BytesIO(), BytesIO()
    Image.new("RGB", (16_384, 1)).save(strip, "PNG")
    soundfile.write(tone, np.zeros(10), 44_101, format="WAV")
    media = {"image_start": strip, "audio": tone}
    fields = {name: base64.b64encode(file.getvalue()).decode() for name, file in media.items()}
    before = memory_mb(server)
    assert generate(server, **fields, width=512, height=1088, num_frames=1).status_code == 200
    assert memory_mb(server) - before < 1000  # it was 232 GB for the strip alone


def memory_mb(server: Server) -> float:
    """The most memory the server ever held."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


def test_unknown_paths_and_methods_have_the_same_shape(server: Server) -> None:
    missing = httpx.get(server.url + "/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = httpx.get(server.url + "/generate")
    assert wrong.status_code == 405
    assert wrong.json()["error"]["message"]


def test_the_server_goes_on_after_all_that(server: Server) -> None:
    assert generate(server).status_code == 200
    assert "Traceback" not in server.log
    assert server.leftovers() == []


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with small limits."""
    limits = {"LTX2_MAX_BODY_MB": "1", "LTX2_MAX_AUDIO_SECONDS": "5", "LTX2_MAX_IMAGE_MEGAPIXELS": "0.25"}
    with running_server(tmp_path_factory.mktemp("strict"), limits, engine="fake") as server:
        yield server


def test_limits_are_settings(strict: Server, data: Path) -> None:
    sound = base64.b64encode((data / "speech.mp3").read_bytes()).decode()
    answer = generate(strict, audio=sound)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "audio_too_long")
    image = base64.b64encode((data / "photo.jpg").read_bytes()).decode()
    answer = generate(strict, image_start=image)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "image_too_large")


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def test_an_announced_body_over_the_limit_is_refused_before_it_is_sent(strict: Server) -> None:
    with connect(strict) as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        answer = b""
        while block := connection.recv(4096):  # until the server closes
            answer += block
    assert b"413" in answer.split(b"\r\n")[0]


def test_a_streamed_body_over_the_limit_is_refused_while_it_streams_in(strict: Server) -> None:
    sent = 0
    with connect(strict) as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.settimeout(0)
        answer = b""
        chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
        while not answer and sent < 100:
            connection.settimeout(5)
            connection.sendall(chunk)
            sent += 1
            connection.settimeout(0.05)
            try:
                answer = connection.recv(4096)
            except TimeoutError:
                continue
        connection.settimeout(5)
        while block := connection.recv(4096):  # the head may come before the rest
            answer += block
    assert b"413" in answer.split(b"\r\n")[0]
    assert b"body_too_large" in answer
    assert 16 <= sent < 30  # 1 MiB is 16 chunks; the answer comes soon after


def test_a_caller_who_leaves_stops_the_generation(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        wait_until_warm(server)
        long = SMALL | {"width": 512, "height": 512, "num_frames": 121, "num_inference_steps": 100}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + "/generate", json=long, timeout=2)
        left = time.monotonic()
        # the next one runs at once: the first would take a minute
        assert generate(server).status_code == 200
        assert time.monotonic() - left < 15
        assert server.clips() == 1
        assert server.leftovers() == []
        assert "Traceback" not in server.log


def test_health_answers_while_requests_run_and_wait(server: Server) -> None:
    busy = SMALL | {"width": 288, "height": 512, "num_frames": 17, "num_inference_steps": 8}
    statuses: list[int] = []

    def post() -> None:
        statuses.append(httpx.post(server.url + "/generate", json=busy, timeout=120).status_code)

    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    waiting, slowest, start = 0, 0.0, time.monotonic()
    with httpx.Client() as client:
        while any(thread.is_alive() for thread in threads):
            began = time.monotonic()
            waiting = max(waiting, client.get(server.url + "/health", timeout=10).json()["queue_len"])
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
    assert statuses == [200] * 4
    assert waiting >= 2
    # one generation takes a quarter of it all: a loop that waits for one would show
    assert slowest < (time.monotonic() - start) / 4


def test_a_full_queue_is_said_with_429(tmp_path: Path) -> None:
    with running_server(tmp_path, {"LTX2_QUEUE_LIMIT": "1"}, engine="fake") as server:
        wait_until_warm(server)
        busy = SMALL | {"prompt": "seconds=1"}
        answers: list[httpx.Response] = []

        def post() -> None:
            answers.append(httpx.post(server.url + "/generate", json=busy, timeout=120))

        threads = [threading.Thread(target=post) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = sorted(answer.status_code for answer in answers)
        assert set(codes) == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["Retry-After"]) > 0


def test_a_model_that_is_not_there_is_said_and_the_server_stays(tmp_path: Path) -> None:
    with running_server(tmp_path, {"LTX2_MODEL": "no-such-model"}) as server:
        answer = generate(server)
        assert answer.status_code == 503
        error = answer.json()["error"]
        assert error["code"] == "not_ready"
        assert "no-such-model" in error["message"]
        assert "LTX2_MODEL" in error["hint"]
        health = httpx.get(server.url + "/health").json()
        assert (health["warm"], health["ready"]) == (False, False)
        assert "no-such-model" in health["fault"]
        assert httpx.get(server.url + "/ping").status_code == 503


def test_runpods_load_balancer_finds_the_ports_that_it_names(tmp_path: Path) -> None:
    port, health_port = free_port(), free_port()
    ports = {"PORT": str(port), "PORT_HEALTH": str(health_port), "LTX2_MODEL": "load=2"}
    url, ping = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{health_port}/ping"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "server.py"), "--engine", "fake"],
            env=environment(tmp_path, **ports),
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        pinged = []
        while not pinged or pinged[-1] != 200:
            assert process.poll() is None, (tmp_path / "log").read_text()
            with contextlib.suppress(httpx.TransportError):
                pinged.append(httpx.get(ping, timeout=5).status_code)
            time.sleep(0.1)
        assert set(pinged) == {204, 200}  # first the model is loaded
        assert httpx.get(url + "/ping", timeout=5).status_code == 200
        assert httpx.post(url + "/generate", json=SMALL, timeout=60).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def test_a_client_stuck_in_its_body_does_not_keep_the_server_from_ending(tmp_path: Path) -> None:
    with running_server(tmp_path, {"LTX2_SHUTDOWN_SECONDS": "1"}, engine="fake") as server:
        wait_until_warm(server)
        with connect(server) as connection:
            connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=20) is not None


def test_the_generation_in_hand_is_finished_when_the_server_is_told_to_end(tmp_path: Path) -> None:
    with running_server(tmp_path, engine="fake") as server:
        wait_until_warm(server)
        answers: list[httpx.Response] = []
        busy = SMALL | {"prompt": "seconds=2"}
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(server.url + "/generate", json=busy, timeout=60))
        )
        thread.start()
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        thread.join()
        assert answers[0].status_code == 200
        assert server.process.wait(timeout=30) == -signal.SIGTERM  # uvicorn passes it on when all is done
        assert (server.clips(), server.leftovers()) == (1, [])


def test_a_second_server_on_the_same_port_says_so_and_loads_nothing(server: Server, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    second = subprocess.run(
        [sys.executable, str(ROOT / "server.py"), "--port", port],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode != 0
    assert "address already in use" in second.stderr.lower()
    assert "miniature" not in second.stderr


def test_a_generation_that_takes_longer_than_the_end_may_is_stopped(tmp_path: Path) -> None:
    with running_server(tmp_path, {"LTX2_SHUTDOWN_SECONDS": "1"}, engine="fake") as server:
        wait_until_warm(server)
        endless = SMALL | {"prompt": "seconds=60"}
        answers: list[httpx.Response] = []
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(server.url + "/generate", json=endless, timeout=60))
        )
        thread.start()
        time.sleep(1)
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) is not None
        assert time.monotonic() - told < 15  # the generation itself would take longer
        thread.join()
        assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "not_ready")
        assert (server.clips(), server.leftovers()) == (0, [])
        assert "Traceback" not in server.log


def test_a_path_cannot_forge_log_lines(server: Server) -> None:
    answer = httpx.get(server.url + "/x%0a2026-01-01 INFO forged")
    assert answer.status_code == 404
    line = next(line for line in server.log.splitlines() if answer.headers["X-Request-Id"] in line)
    assert line.endswith("status=404 seconds=" + line.rpartition("=")[2])
    assert "%0A2026-01-01%20INFO%20forged" in line
