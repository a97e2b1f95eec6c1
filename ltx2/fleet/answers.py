"""What RunPod says of a job, understood: how far it is, what it has come to, and what went wrong."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ltx2.engine import Phase, Progress
from ltx2.errors import Canceled, Internal, LTX2Error, WorkerCrashed, error_of, too_long
from ltx2.fleet.remote import Document

WAITING: Final = "IN_QUEUE"
RUNNING: Final = "IN_PROGRESS"
COMPLETED: Final = "COMPLETED"
OVER: Final = frozenset({COMPLETED, "FAILED", "CANCELLED", "TIMED_OUT"})

MOST_CHARACTERS: Final = 1000
"""Of what a worker says."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]+")


class _Progress(BaseModel):
    """What our worker reports."""

    model_config = ConfigDict(strict=True, extra="ignore")

    phase: Phase
    step: Annotated[int, Field(ge=0, le=100_000)] = 0
    steps: Annotated[int, Field(ge=0, le=100_000)] = 0


def progress_of(document: Document) -> Progress | None:
    """How far a job is that is not over; None where it is not said in a way that we know."""
    if document.get("status") == WAITING:
        return Progress("queued")
    try:
        told = _Progress.model_validate(document.get("output"))
    except ValidationError:
        return None
    # what the worker has taken waits for nobody
    return None if told.phase == "queued" else Progress(told.phase, min(told.step, told.steps), told.steps)


def output_of(document: Document, names: Mapping[str, str], seconds: float) -> Mapping[str, Any]:
    """What a job that is over was answered with.

    Args:
        document: what RunPod says of it.
        names: what the request calls each media field that was sent.
        seconds: how long it was allowed to take.

    Raises:
        LTX2Error: it has not succeeded; the error that the worker named, where it did.
    """
    state, output = document["status"], document.get("output")
    if state == "CANCELLED":
        raise Canceled("the generation was cancelled at RunPod")
    if state == "TIMED_OUT":
        raise too_long(seconds)
    told = output if isinstance(output, dict) else {}
    if state == COMPLETED and not document.get("error") and "error_code" not in told and "error" not in told:
        if output is None:
            raise Internal(
                "the clip was made and did not come back: RunPod drops results that are too large for it",
                hint="ask for a lower quality, or have whoever runs the endpoint give its workers a bucket",
            )
        if told:
            return told
        raise odd("its result is no JSON object")
    raise _failure(document.get("error") or told.get("error"), told, names)


def refusal_of(answer: object, names: Mapping[str, str]) -> LTX2Error:
    """Why a job was not taken that another server of ours refused, or RunPod."""
    told = answer if isinstance(answer, dict) else {}
    if "error_code" in told:
        return _failure(told.get("error"), told, names)
    return Internal("the RunPod endpoint does not take what this server sends")


def odd(what: str) -> Internal:
    """What is said of a worker that is not ours."""
    return Internal(f"the RunPod endpoint made no clip: {what}", hint="it has to run this project's worker")


def _failure(error: object, told: Mapping[str, Any], names: Mapping[str, str]) -> LTX2Error:
    code, field = told.get("error_code"), told.get("field")
    text = _shortened(error)
    if isinstance(code, str):
        if not isinstance(field, str):
            return error_of(code, text or "the generation failed at the RunPod endpoint")
        # with the field before it, as a string of an error has it; another server of ours names it in its input
        text, field = text.removeprefix(f"{field}: "), field.removeprefix("input.")
        return error_of(code, text or "it cannot be used", field=names.get(field, field)[:200])
    if _is_exception(error):
        return Internal("the RunPod worker failed; its log says why")
    # nobody but RunPod gives up a job without a code: its worker was lost
    return WorkerCrashed("the RunPod worker was lost in the middle of the generation")


def _shortened(error: object) -> str:
    text = _CONTROL.sub(" ", error).strip() if isinstance(error, str) else ""
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def _is_exception(error: object) -> bool:
    """Whether RunPod's client made it of an exception, with a traceback that is nobody's business."""
    try:
        told = json.loads(error) if isinstance(error, str) else error
    except ValueError:
        return False
    return isinstance(told, dict) and "error_type" in told
