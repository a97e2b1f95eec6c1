"""Videos to be changed: what they settle of a request, and where they may come from."""

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from quick import in_loop, running_studio, until

from ltx2.errors import Canceled, InvalidRequest, LTX2Error, UnknownFile, UnsupportedMedia
from ltx2.media.audio import Waveform
from ltx2.media.video import write_video
from ltx2.payload import body_of, parse
from ltx2.request import AudioTrack, Extend, GenerationRequest, Keyframe, Retake
from ltx2.settings import Settings
from ltx2.studio.intake import take_in
from ltx2.studio.job import Order, new_id
from processes import Server

RETAKE = GenerationRequest(prompt="x", video="video", retake=Retake(start=0.1, end=0.2))
EXTEND = GenerationRequest(prompt="x", video="video", extend=Extend(seconds=0.5))
FILM = Fraction(24000, 1001)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """12 frames of 96x64 and a tone, half a second and a little more."""
    path = tmp_path_factory.mktemp("film") / "clip.mp4"
    sound = Waveform(0.1 * np.ones((1, 24_000), np.float32), 48_000)
    frames = np.zeros((12, 64, 96, 3), np.uint8)
    write_video(path, [frames], width=96, height=64, fps=FILM, num_frames=12, audio=sound, crf=30, preset="ultrafast")
    return path.read_bytes()


def with_a_rare_sound() -> bytes:
    """Two frames, and a sound of a codec that is not taken."""
    file = BytesIO()
    with av.open(file, "w", format="matroska") as container:
        pictures, sound = container.add_stream("libx264", rate=24), container.add_stream("mp2", rate=44_100)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(pictures.encode(frame))
        heard = av.AudioFrame.from_ndarray(np.zeros((2, 4096), np.float32), format="fltp", layout="stereo")
        heard.sample_rate = 44_100
        for packet in (*pictures.encode(), *sound.encode(heard), *sound.encode()):
            container.mux(packet)
    return file.getvalue()


def settled(request: GenerationRequest, data: bytes, audio: bytes | None = None, **limits: Any) -> GenerationRequest:
    async def taken() -> GenerationRequest:
        sources = {"video": data} | ({"audio": audio} if request.audio and audio else {})
        sources |= {keyframe.image: data for keyframe in request.keyframes}
        with ThreadPoolExecutor(1) as threads:
            return (await take_in(request, sources, Settings(**limits), threads))[0]

    return asyncio.run(taken())


def test_a_video_settles_size_rate_and_length(film: bytes) -> None:
    retaken = settled(RETAKE, film)
    assert (retaken.width, retaken.height, retaken.exact_fps, retaken.length) == (96, 64, FILM, 12)
    assert retaken.retake == RETAKE.retake
    assert (retaken.prompt, retaken.mode) == ("x", "Retake")
    extended = settled(EXTEND, film)  # half a second is 11.99 frames
    assert (extended.width, extended.height, extended.exact_fps, extended.length) == (96, 64, FILM, 24)
    assert settled(extended, film) == extended
    assert settled(retaken, film) == retaken


def test_what_is_sent_to_another_server_settles_to_the_same(film: bytes) -> None:
    for request in (RETAKE, EXTEND):
        body, _ = body_of(settled(request, film), {"video": base64.b64encode(film).decode()})
        again, _ = parse(body)
        assert settled(again, film) == settled(request, film)


def retake(**fields: Any) -> GenerationRequest:
    return RETAKE.model_copy(update={"retake": Retake(**fields)})


def test_a_retake_may_end_less_than_a_frame_late(film: bytes) -> None:
    # 12 frames are 0.5005 seconds, a frame is 0.0417
    for end in (0.49, 0.5005, 0.51, 0.54):
        part = settled(retake(start=0.45, end=end), film).retake
        assert part is not None
        assert part.end == min(end, 0.5005)


@pytest.mark.parametrize(
    ("request_", "limits", "field", "words"),
    [
        (retake(start=0.51, end=0.6), {}, "retake.start", "ends at 0.5005 s"),
        (retake(start=0.1, end=0.55), {}, "retake.end", "ends at 0.5005 s"),
        (EXTEND, {"max_num_frames": 23}, "extend.seconds", "24 frames"),
        (EXTEND.model_copy(update={"extend": Extend(seconds=86_400)}), {}, "extend.seconds", "more than the 1441"),
        (RETAKE, {"max_num_frames": 11}, "video", "11 frames"),
        (RETAKE, {"max_pixels": 96 * 64 - 2}, "video", "6144 pixels"),
        (RETAKE, {"max_video_seconds": 0.5}, "video", "0.5 seconds"),
        (RETAKE, {"max_body_mb": 0.001}, "video", "MiB"),
        (RETAKE.model_copy(update={"loop": True}), {}, "loop", "cannot end"),
        (
            EXTEND.model_copy(update={"keyframes": (Keyframe(image="image", frame=30),)}),
            {},
            "image",
            "expected a PNG",
        ),
    ],
)
def test_what_does_not_go_with_the_video(
    film: bytes, request_: GenerationRequest, limits: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        settled(request_, film, **limits)
    assert caught.value.field == field
    assert words in caught.value.message


def test_what_is_no_video_and_a_sound_nobody_can_read(film: bytes) -> None:
    for data in (b"nothing", film[: len(film) // 2]):
        with pytest.raises(UnsupportedMedia) as caught:
            settled(RETAKE, data)
        assert caught.value.field == "video"
    odd = with_a_rare_sound()
    with pytest.raises(UnsupportedMedia, match="mp2") as caught:
        settled(EXTEND, odd)
    assert caught.value.field == "video"
    for not_kept in ({"include_audio": False}, {"audio": AudioTrack(source="audio")}):
        request = EXTEND.model_copy(update=not_kept)
        assert settled(request, odd, audio=film).length == 2 + 12


@in_loop
async def test_a_video_may_be_an_upload_or_the_clip_of_a_job(tmp_path: Path, film: bytes) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        kept = studio.files.add(film, owner="ann", filename="film.mp4")
        assert kept.content_type == "video/mp4"
        ann = Order(owner="ann")
        first = await studio.result(await studio.submit(EXTEND, {"video": kept.id}, ann))
        assert (first.inputs, first.request.num_frames) == ({"video": kept.id}, 24)

        again = await studio.result(await studio.submit(EXTEND, {"video": first.id}, ann))
        assert again.inputs == {"video": first.file_id}  # nothing is kept twice
        assert again.request.num_frames == 36
        assert engine.media[-1] == {"video": studio.files.read(str(first.file_id), "ann")}
        assert len(studio.files.list("ann")) == 3

        keyed = Order(owner="ann", idempotency_key="k")
        one = await studio.submit(RETAKE, {"video": first.id}, keyed)
        assert (await studio.submit(RETAKE, {"video": first.id}, keyed)).id == one.id


def test_a_clip_goes_on_over_http(fake_server: Server) -> None:
    with httpx.Client(base_url=fake_server.url, timeout=60) as client:

        def made(**body: Any) -> dict[str, Any]:
            answer = client.post("/generate", json={"prompt": "x"} | body)
            assert answer.status_code == 200, answer.text
            facts: dict[str, Any] = answer.json()
            return facts

        first = made(width=64, height=96, num_frames=12, fps=30, output_format="webm")
        bytes_ = base64.b64decode(first["video"].partition(",")[2])
        file = client.post("/v1/files", files={"file": ("clip.webm", bytes_)}).json()
        longer = made(video=file["file_id"], extend={"seconds": 0.2})
        assert (longer["mode"], longer["resolution"], longer["fps"]) == ("Extend", "64x96", 30)
        assert (longer["num_frames"], longer["has_audio"]) == (18, True)
        newest = client.get("/v1/jobs").json()["data"][0]["id"]
        again = made(video=newest, retake={"start": 0.1, "end": 0.3, "streams": "picture"})
        assert (again["mode"], again["num_frames"]) == ("Retake", 18)
        refused = client.post(
            "/generate", json={"prompt": "x", "video": longer["video"], "retake": {"start": 1, "end": 2}}
        )
        assert refused.status_code == 422
        assert refused.json()["error"]["field"] == "retake.start"


@in_loop
async def test_jobs_without_a_clip_are_no_video(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        plain = GenerationRequest(prompt="wait", width=64, height=64, num_frames=2)

        async def refused(job_id: str, **order: Any) -> LTX2Error:
            with pytest.raises(LTX2Error) as caught:
                await studio.submit(EXTEND, {"video": job_id}, Order(**order))
            assert caught.value.field == "video"
            return caught.value

        waiting = await studio.submit(plain, {}, Order())
        await until(lambda: engine.running == 1)
        error = await refused(waiting.id)
        assert "wait" in str(error.hint)
        await studio.cancel(waiting.id, "")
        with pytest.raises(Canceled):
            await studio.result(waiting)
        assert "canceled" in (await refused(waiting.id)).message

        done = await studio.submit(plain.model_copy(update={"prompt": "x"}), {}, Order())
        await studio.result(done)
        for job_id, order in ((new_id("job"), {}), (done.id, {"owner": "bob"})):
            assert isinstance(await refused(job_id, **order), UnknownFile)
        shown = plain.model_copy(update={"keyframes": (Keyframe(image="image_start", frame="first"),)})
        with pytest.raises(UnknownFile, match="as the video only"):
            await studio.submit(shown, {"image_start": done.id}, Order())
        await studio.forget(done.id, "")
        await refused(done.id)
        assert studio.queue_len == 0
