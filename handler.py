"""The RunPod serverless worker, and on a laptop: ``python handler.py --test_input '{"input": {…}}'``."""

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from ltx2.checker import checked
from ltx2.engine import Engine, OnProgress
from ltx2.errors import GpuLost, Internal, InvalidRequest, LTX2Error, OutOfMemory
from ltx2.fake import FakeEngine
from ltx2.model.local import LocalEngine
from ltx2.payload import parse
from ltx2.serverless.answers import FAILED, sendable, view_error
from ltx2.serverless.delivery import Delivery
from ltx2.serverless.ending import Ending, end_at_once
from ltx2.serverless.fitness import checks
from ltx2.serverless.updates import Updates
from ltx2.settings import Settings, load_settings
from ltx2.studio.direct import Direct
from ltx2.terminal import TerminalProgress

log = logging.getLogger("ltx2.handler")

MOST_STARVED: Final = 2
"""With so many jobs that ran out of memory, and none between that gave a clip, the worker asks to be replaced."""


class Worker:
    """Answers jobs with the fields of ``POST /generate``.

    Args:
        studio: runs them.
        delivery: hands over what was made; without, as the settings say.
    """

    def __init__(self, studio: Direct, delivery: Delivery | None = None) -> None:
        self.studio = studio
        self._delivery = delivery or Delivery(studio.settings)
        self._starved = 0

    async def handler(self, job: dict[str, Any]) -> dict[str, Any]:
        """A job's result: the response of ``POST /generate``, or ``error``, ``error_code`` and ``field``.

        Larger clips come as ``video_url`` and ``url_expires_at``, or as ``video_path``, instead of ``video``; sounds
        alone by the same names with ``audio``. ``refresh_worker`` asks for another worker.

        Raises:
            asyncio.CancelledError: RunPod stopped the job. The generation has ended.
        """
        try:
            answer = await self._result(job)
            self._starved = 0
        except LTX2Error as error:
            answer = self._failed(error)
        except MemoryError:
            answer = self._failed(OutOfMemory("the worker ran out of memory"))
        except (Exception, SystemExit):
            # RunPod would send a traceback and the host's name to the caller, or end the worker without an answer
            log.exception("a job failed")
            answer = self._failed(Internal(FAILED))
        return sendable(answer, self._delivery.limit)

    def _failed(self, error: LTX2Error) -> dict[str, Any]:
        """The answer, and whether RunPod should put another worker into the place of this one."""
        self._starved += isinstance(error, OutOfMemory)
        refresh = isinstance(error, GpuLost) or (isinstance(error, OutOfMemory) and self._starved >= MOST_STARVED)
        if refresh:
            log.warning("this worker asks to be replaced: %s", error.message)
        return view_error(error, refresh=refresh)

    async def _result(self, job: dict[str, Any]) -> dict[str, Any]:
        if self.studio.settings.runpod_jobs_url is None:
            with TerminalProgress() as bar:
                return await self._generate(job, bar)
        updates = Updates(job)
        try:
            return await self._generate(job, updates)
        finally:
            await asyncio.to_thread(updates.finish)

    async def _generate(self, job: dict[str, Any], progress: OnProgress) -> dict[str, Any]:
        request, sources = parse(job.get("input"))
        bucket = await self._delivery.bucket_of(job)
        async with self.studio.run(request, sources, progress) as (asked, clip):
            return await self._delivery.deliver(job, asked, clip, bucket)


def engine_of(settings: Settings) -> Engine:
    """What makes the clips.

    Raises:
        InvalidRequest: the engine that the settings name sends them to other machines.
    """
    engines: dict[str, Callable[[Settings], Engine]] = {"local": LocalEngine, "fake": FakeEngine}
    if settings.engine not in engines:
        raise InvalidRequest(
            f"the environment variable LTX2_ENGINE is wrong: a worker makes its clips itself, so it takes "
            f"{' or '.join(engines)}, and {settings.engine} is for the server",
            field="LTX2_ENGINE",
        )
    return checked(engines[settings.engine](settings.without_secrets()), settings)


def serve(settings: Settings, engine: Engine, delivery: Delivery) -> None:
    """Load the model and answer jobs until RunPod ends this process; outside of RunPod, answer one."""
    signal.signal(signal.SIGTERM, end_at_once)
    # Importing it reads the environment, which has been checked by now, and sets up the root logger.
    import runpod

    logging.getLogger("ltx2").setLevel(settings.log_level)
    runpod.serverless.log.set_level(settings.runpod_log_level)
    # a volume with many files is slow, and no job has to wait for it
    threading.Thread(target=delivery.sweep, name="sweep", daemon=True).start()
    studio = Direct(settings, engine)
    failure = studio.load()
    for check in checks(settings, failure):
        runpod.serverless.register_fitness_check(check)
    runpod.serverless.start({"handler": Worker(studio, delivery).handler, "concurrency_modifier": Ending().concurrency})


def main() -> int:
    """Returns 0, or 2 after saying which setting is wrong."""
    try:
        settings = load_settings()
        engine, delivery = engine_of(settings), Delivery(settings)
    except InvalidRequest as error:
        print(error.message, file=sys.stderr)  # noqa: T201
        return 2
    serve(settings, engine, delivery)
    return 0


if __name__ == "__main__":
    sys.exit(main())
