"""``POST /plan`` over HTTP: of a server of test cards, and of one with a model in a process of its own."""

import base64
from pathlib import Path
from typing import Any

import httpx
import pytest
from small_videos import video

from ltx2.fake import WARNING
from ltx2.quote import Quote
from processes import Server

SMALL: dict[str, Any] = {"prompt": "x", "width": 64, "height": 64, "num_frames": 9}


def post(server: Server, path: str, **fields: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=SMALL | fields, timeout=60)


def plan(server: Server, **fields: Any) -> Quote:
    answer = post(server, "/plan", **fields)
    assert answer.status_code == 200, answer.text
    return Quote.model_validate_json(answer.content)


def test_a_plan_says_what_the_clip_then_is(server: Server) -> None:
    fields = {"width": 96, "num_frames": 12, "pipeline": "two_stage", "seed": 5}
    said = plan(server, **fields)
    # 8 steps at half the size, 3 at the whole one, one pass each: the tiny model is distilled
    assert (said.model, said.stages, said.steps, said.passes) == ("tiny", 2, 11, 11)
    assert (said.grid.width, said.grid.height, said.grid.num_frames) == (128, 64, 17)
    made = post(server, "/generate", **said.request.model_dump(mode="json")).json()
    assert made["pipeline"] == said.request.pipeline == "two_stage"
    assert made["num_inference_steps"] == said.request.num_inference_steps == 8
    assert (made["seed"], made["num_frames"], made["mode"]) == (5, said.num_frames, said.mode)
    assert made["duration_seconds"] == said.duration_seconds
    # the random miniature says so before as after
    assert set(said.warnings) & set(made["warnings"])
    after = plan(server, **fields)
    assert after.seconds.learned_from >= 1
    assert after.seconds.total is not None
    assert after.seconds.phases.keys() == {"loading", "encoding", "denoising", "decoding", "muxing"}
    assert after.seconds.total == pytest.approx(sum(after.seconds.phases.values()), abs=0.01)


def test_the_plan_of_a_video_may_be_sent_as_it_is_too(server: Server) -> None:
    film = base64.b64encode(video(9)).decode()
    asked = {"prompt": "x", "video": film, "extend": {"seconds": 0.32}, "seed": 7, "num_inference_steps": 1}
    said = httpx.post(server.url + "/plan", json=asked, timeout=60).raise_for_status().json()
    assert (said["mode"], said["num_frames"], said["request"]["video"]) == ("Extend", 17, "video")
    answers = []
    for body in (asked, said["request"] | {"video": film}):
        made = httpx.post(server.url + "/generate", json=body, timeout=60).raise_for_status().json()
        answers.append(made["video"])
    assert answers[0] == answers[1]


def test_test_cards_are_planned_as_they_are_drawn(fake_server: Server) -> None:
    said = plan(fake_server, guidance_scale=3, pipeline="two_stage")
    assert (said.model, said.stages, said.steps, said.passes) == ("fake", 1, 8, 8)
    assert said.warnings == [WARNING]
    assert (said.memory.peak_gb, said.cost_usd) == (None, None)


def test_what_would_be_refused_is_refused_here(server: Server, fake_server: Server) -> None:
    for target in (server, fake_server):
        for wrong, field in (
            ({"width": 65}, "width"),
            ({"image_end": base64.b64encode(b"no image").decode()}, "image_end"),
            ({"unknown": 1}, "unknown"),
        ):
            answers = [post(target, path, **wrong) for path in ("/plan", "/generate")]
            errors = [answer.json()["error"] for answer in answers]
            assert [answer.status_code for answer in answers] == [422, 422]
            assert [error["field"] for error in errors] == [field, field]
            assert errors[0]["message"] == errors[1]["message"]


def test_a_plan_leaves_nothing(fake_server: Server, data: Path) -> None:
    def kept() -> list[Any]:
        return [httpx.get(fake_server.url + path).json()["data"] for path in ("/v1/jobs", "/v1/files")]

    before = kept()
    photo = "data:image/jpeg;base64," + base64.b64encode((data / "photo.jpg").read_bytes()).decode()
    assert plan(fake_server, image_start=photo).request.image_start == "image_start"
    assert kept() == before
