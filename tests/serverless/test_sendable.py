"""Whatever a result is, what is sent is JSON, small enough, and says what it is."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from control_plane import strict_json

from ltx2.errors import GpuLost, InvalidRequest
from ltx2.serverless.answers import FAILED, LONGEST_TEXT, sendable, size_of, view_error

LIMIT = 100_000


class Number(float):
    """As numpy's are."""


class Nameless:
    """What fails when it is to become a name."""

    def __str__(self) -> str:
        raise RuntimeError("a secret path: /etc")


def circle() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["itself"] = [found]
    return found


def checked(answer: object) -> dict[str, Any]:
    """What is sent of an answer, after it went through what RunPod's client does with it."""
    found = sendable(answer, LIMIT)
    output = dict(found)
    error, output["stopPod"] = output.pop("error", None), output.pop("refresh_worker", None)
    assert error is None or (isinstance(error, str) and error.strip())
    strict_json(json.dumps({"output": output, "error": error}, ensure_ascii=False).encode())
    assert found
    assert size_of(found) <= LIMIT
    return found


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"a": 1, "b": [True, None, "é", 0.5]}, {"a": 1, "b": [True, None, "é", 0.5]}),
        ({"a": float("nan"), "b": {"c": [float("inf"), -float("inf")]}}, {"a": None, "b": {"c": [None, None]}}),
        ({"a": Number("nan"), "b": Number(2)}, {"a": None, "b": 2.0}),
        ({"a": "half \ud800 and \udfff", "\udc00": 1}, {"a": "half \ufffd and \ufffd", "\ufffd": 1}),
        ({"a": b"bytes", "b": Path("/etc"), "c": {1}, "d": (2,)}, {"a": None, "b": None, "c": [1], "d": [2]}),
        (OrderedDict({1: 2, None: 3}), {"1": 2, "None": 3}),
        ({"a": 1, "error": None}, {"a": 1}),
        ({"error": "why", "field": "x"}, {"error": "why", "field": "x"}),
        ({"error": {"a": "dict"}}, {"error": FAILED}),
        ({"error": "  ", "error_code": "x"}, {"error": FAILED, "error_code": "x"}),
        ({"error": 7}, {"error": FAILED}),
        ({"error": "why", "refresh_worker": True}, {"error": "why", "refresh_worker": True}),
    ],
)
def test_what_becomes_of_a_result(answer: object, expected: dict[str, Any]) -> None:
    assert checked(answer) == expected


@pytest.mark.parametrize(
    "answer",
    [
        {},
        None,
        [],
        "text",
        b"bytes",
        {"error": None},
        {"a": 10**5000},
        {Nameless(): 1},
        circle(),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_what_is_no_result_is_one_error_all_the_same(answer: object) -> None:
    assert checked(answer) == {"error": FAILED, "error_code": "internal"}


def test_what_is_too_large_is_an_error_that_says_so() -> None:
    found = checked({"video": "x" * LIMIT, "refresh_worker": True})
    assert found["error_code"] == "media_too_large"
    assert found["error"].startswith("the result has 0.1 MB")
    assert found["refresh_worker"] is True


def test_the_limit_is_one_of_bytes_and_counts_everything() -> None:
    answer = {"video": "é" * 1000}
    exact = len(json.dumps({"output": answer}, ensure_ascii=False).encode())
    assert sendable(answer, exact) == answer
    assert sendable(answer, exact - 1)["error_code"] == "media_too_large"


def test_an_error_as_long_as_a_request_is_cut() -> None:
    found = checked(view_error(InvalidRequest("unknown field", field="x" * 10 * LIMIT)))
    assert len(found["error"]) == len(found["field"]) == LONGEST_TEXT
    assert found["error_code"] == "invalid_request"


def test_an_error_says_what_it_is() -> None:
    assert view_error(GpuLost("the generation failed"), refresh=True) == {
        "error": "the generation failed",
        "error_code": "internal",
        "refresh_worker": True,
    }
    assert view_error(InvalidRequest("wrong", field="a", hint="mend it")) == {
        "error": "a: wrong (mend it)",
        "error_code": "invalid_request",
        "field": "a",
    }
