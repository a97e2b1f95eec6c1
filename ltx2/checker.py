"""What the operator of a server lets be seen: every clip that is to be checked is shown to a function of theirs.

``LTX2_CONTENT_CHECKER=package.module:function`` names it. It is called as ``function(pictures)`` with an iterator over
PIL images in RGB, in order, and returns True when the clip may be given out. It runs in the process that has the model,
between two generations. Whatever else it returns or raises, nobody gets the clip.
"""

import contextlib
import importlib
import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from ltx2.engine import CancelFlag, Clip, Engine, EngineStatus, OnProgress
from ltx2.errors import Canceled, ContentRefused, Internal, NotReady
from ltx2.media.stills import frames
from ltx2.request import ContentCheck, GenerationRequest
from ltx2.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

FAST_SECONDS: Final = 0.5
"""From one picture to the next, where not all are looked at. The first and the last always are."""


class Checker(Protocol):
    """A function of the operator's."""

    def __call__(self, pictures: "Iterator[Image]") -> bool:
        """Whether these may be seen."""


def checked(engine: Engine, settings: Settings) -> Engine:
    """The engine; behind a checker where one is configured."""
    return engine if settings.content_checker is None else CheckedEngine(engine, settings)


class CheckedEngine:
    """Implements :class:`ltx2.engine.Engine` by another one, and keeps back what the checker does not let through."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._name = settings.content_checker or ""
        self._checker: Checker | None = None

    def load(self) -> None:
        if self._checker is None:
            self._checker = find_checker(self._name)
        self._engine.load()

    def status(self) -> EngineStatus:
        return self._engine.status()

    def close(self) -> None:
        self._engine.close()

    def generate(
        self,
        request: GenerationRequest,
        media: Mapping[str, bytes],
        on_progress: OnProgress,
        cancelled: CancelFlag,
    ) -> Clip:
        if self._checker is None:
            self._checker = find_checker(self._name)
        clip = self._engine.generate(request, media, on_progress, cancelled)
        if request.content_check == "none":
            return clip
        began = time.perf_counter()
        try:
            if not _allows(self._checker, _pictures(clip, request.content_check, cancelled)):
                raise ContentRefused("the content check does not let this clip be given out")
        except BaseException:
            clip.path.unlink(missing_ok=True)
            raise
        return replace(clip, seconds={**clip.seconds, "checking": time.perf_counter() - began})


def find_checker(name: str) -> Checker:
    """The function that is called ``package.module:function``.

    Raises:
        NotReady: there is none.
    """
    module, _, function = name.partition(":")
    try:
        found: Checker = getattr(importlib.import_module(module), function)
    except Exception:
        log.exception("LTX2_CONTENT_CHECKER cannot be used")
        raise NotReady(
            f"the content checker {name} could not be imported; the server's log says why",
            hint="LTX2_CONTENT_CHECKER must be package.module:function, and the package on PYTHONPATH",
        ) from None
    if not callable(found):
        raise NotReady(f"the content checker {name} is no function")
    return found


def _allows(checker: Checker, pictures: "Generator[Image]") -> bool:
    """True only when the checker has said so. It may keep the pictures it has taken, and can take no others."""
    try:
        with contextlib.closing(pictures):
            answer: object = checker(pictures)
    except Canceled:
        raise
    except (Exception, SystemExit):  # the process has the model, and is not the checker's to end
        log.exception("the content checker failed")
        raise Internal("the content check failed, so the clip is not given out; the server's log says why") from None
    if not isinstance(answer, bool):
        log.error("the content checker returned %s instead of True or False", type(answer).__name__)
        raise Internal("the content check gave no answer, so the clip is not given out")
    return answer


def _pictures(clip: Clip, check: ContentCheck, cancelled: Callable[[], bool]) -> "Generator[Image]":
    """The pictures of a clip: all, or one every half second."""
    with contextlib.closing(frames(clip.path, FAST_SECONDS if check == "fast" else 0.0)) as shown:
        for picture in shown:
            if cancelled():
                raise Canceled("the request was cancelled")
            yield picture
