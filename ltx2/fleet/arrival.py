"""The output of a job as a clip: the facts checked, the file fetched and looked into."""

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pybase64
from pydantic import ValidationError

from ltx2.engine import PHASES, Clip
from ltx2.errors import Internal, LTX2Error, UnsupportedMedia, UrlNotAllowed
from ltx2.fleet.answers import odd
from ltx2.fleet.watch import Watch
from ltx2.formats import OutputFormat
from ltx2.media.fetch import download
from ltx2.media.partial import written_beside
from ltx2.media.probe import probe_sound, probe_video
from ltx2.media.sniff import describe, kind
from ltx2.payload import Facts
from ltx2.request import GenerationRequest
from ltx2.settings import Settings

log = logging.getLogger(__name__)

FETCH_SECONDS: Final = 600.0
"""How long fetching one clip may take: it was paid for."""
FETCH_PAUSES: Final = (0.5, 2.0, 5.0)
PHASES_KEPT: Final = frozenset({*PHASES, "checking"}) - {"queued"}
"""Whose seconds are believed: they become names in the metrics."""
MOST_SECONDS: Final = 604_800.0
"""Of one phase: RunPod lets nothing take longer than a week."""

_KINDS: Final[Mapping[OutputFormat, str]] = {
    "mp4": "mov",
    "mov": "mov",
    "webm": "matroska",
    "gif": "gif",
    "wav": "wav",
    "flac": "flac",
    "mp3": "mp3",
}
_HEAD: Final = 4096
_PREFIX: Final = "endpoint-"


class Arrival:
    """Takes in the clips of one engine.

    Args:
        settings: where clips go.
        allow: internal ``host:port`` that they may be fetched from.
    """

    def __init__(self, settings: Settings, allow: frozenset[str]) -> None:
        self._settings = settings
        self._allow = allow
        self._since = time.time()

    def sweep(self) -> None:
        """Remove what a server has left that was killed: of a data folder's servers there is one at a time."""
        for pattern in (f"{_PREFIX}*", f".{_PREFIX}*"):
            for left in self._settings.work_dir.glob(pattern):
                with contextlib.suppress(OSError):
                    if left.stat().st_mtime < self._since:
                        left.unlink()
                        log.info("removed %s, left by a server that ended early", left.name)

    def clip(self, request: GenerationRequest, output: Mapping[str, Any], watch: Watch) -> Clip:
        """The clip that an output stands for. No file is left where there is none.

        Raises:
            Canceled: by the caller.
            EngineDown: the server ends.
            StorageFull: there is no room for it.
            Internal: it is no clip, or not the one that was asked for, or cannot be fetched.
        """
        facts = _facts(request, output)
        folder = self._settings.make_work_dir()
        target = folder / f"{_PREFIX}{uuid.uuid4().hex}.{request.output.format}"
        with written_beside(target) as partial:
            self._file(request, output, watch)(partial)
            _check_file(request, facts, partial)
        return Clip(
            path=target,
            width=request.width,
            height=request.height,
            num_frames=facts.num_frames,
            prompt=None if facts.prompt == request.prompt else facts.prompt,
            provenance=facts.provenance,
            quality=facts.quality,
            retried_for=tuple(facts.retried_for),
            fps=request.exact_fps,
            audio_sample_rate=facts.audio_sample_rate,
            seed=facts.seed,
            steps=facts.num_inference_steps,
            stages=2 if facts.pipeline == "two_stage" else 1,
            model=facts.model,
            warnings=tuple(facts.warnings),
            seconds={
                phase: min(max(0.0, told), MOST_SECONDS)
                for phase, told in facts.phase_seconds.items()
                if phase in PHASES_KEPT
            },
        )

    def _file(self, request: GenerationRequest, output: Mapping[str, Any], watch: Watch) -> Callable[[Path], object]:
        """What writes the file of an output."""
        field = "audio" if request.is_sound_only else "video"
        if isinstance(text := output.get(field), str):
            return lambda path: path.write_bytes(_decoded(text))
        if isinstance(url := output.get(f"{field}_url"), str):
            return lambda path: self._fetch(url, path, field, watch)
        if f"{field}_path" in output:
            raise Internal(
                "the clip is too large for an answer of RunPod's and lies on the endpoint's volume, which is not here",
                hint="ask for a lower quality, or have whoever runs the endpoint give its workers a bucket",
            )
        raise odd(f"there is no {field} in its result")

    def _fetch(self, url: str, path: Path, field: str, watch: Watch) -> None:
        """Fetch a clip, a few times if need be."""
        limit = int(1e9 * self._settings.files_max_gb)
        for pause in (*FETCH_PAUSES, None):
            try:
                return watch.run(
                    download(url, path, field=field, limit=limit, allow=self._allow, seconds=FETCH_SECONDS)
                )
            except UrlNotAllowed as error:
                raise Internal(
                    f"the clip cannot be fetched: {error.message}",
                    hint="whoever runs this server opens internal places with LTX2_URL_ALLOW",
                ) from None
            except UnsupportedMedia as error:
                if pause is None:
                    raise Internal(f"the clip was made and could not be fetched: {error.message}") from None
                log.warning("a clip could not be fetched from the endpoint: %s", error.message)
            except LTX2Error as error:
                if error.field is None:  # it is not about the URL
                    raise
                raise Internal(f"the clip could not be fetched: {error.message}") from None
            watch.sleep(pause)
        return None


def _facts(request: GenerationRequest, output: Mapping[str, Any]) -> Facts:
    try:
        facts = Facts.model_validate({name: value for name, value in output.items() if name in Facts.model_fields})
    except ValidationError as error:
        places = {str(each["loc"][0]) for each in error.errors(include_input=False, include_url=False)}
        raise odd(f"of its result cannot be used: {', '.join(sorted(places))}") from None
    if request.num_frames not in (None, facts.num_frames):
        raise odd(f"{request.num_frames} frames were asked for, and it made {facts.num_frames}")
    if facts.output_format != request.output.format:
        raise odd(f"a {request.output.format} was asked for, and it gave a {facts.output_format}")
    return facts


def _decoded(text: str) -> bytes:
    header, comma, _ = text[:200].partition(",")
    if not comma or not header.lower().startswith("data:") or not header.lower().endswith(";base64"):
        raise odd("the file in its result is no data URL")
    try:
        return pybase64.b64decode(text[len(header) + 1 :], validate=True)
    except ValueError:
        raise odd("the file in its result is not base64") from None


def _check_file(request: GenerationRequest, facts: Facts, path: Path) -> None:
    """Look into a file, so that nobody is given what is no clip."""
    output_format = request.output.format
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if kind(head) != _KINDS[output_format]:
        raise odd(f"a {output_format} was asked for, and it gave {describe(head)}")
    try:
        if request.is_sound_only:
            sample_rate: int | None = probe_sound(path).sample_rate
        else:
            seen = probe_video(path, output_format)
            sample_rate = seen.audio_sample_rate
            _compare("size", f"{request.width}x{request.height}", f"{seen.width}x{seen.height}")
            if output_format != "gif":  # which may leave some out
                _compare("number of frames", facts.num_frames, seen.num_frames)
    except UnsupportedMedia as error:
        raise odd(error.message) from None
    _compare("sample rate", facts.audio_sample_rate, sample_rate)


def _compare(what: str, wanted: object, found: object) -> None:
    if found != wanted:
        raise odd(f"the {what} of its clip is {found} and should be {wanted}")
