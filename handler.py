"""The RunPod serverless worker, and on a laptop: ``python handler.py --test_input '{"input": {…}}'``."""

import asyncio
import logging
import sys
import threading
import time
from typing import Any

import pybase64
import runpod

from ltx2.checker import checked
from ltx2.engine import OnProgress, Progress
from ltx2.errors import Internal, InvalidRequest, LTX2Error
from ltx2.model.local import LocalEngine
from ltx2.payload import file_field, parse, view
from ltx2.settings import load_settings
from ltx2.studio.direct import Direct
from ltx2.terminal import TerminalProgress

log = logging.getLogger("ltx2.handler")

SECONDS_BETWEEN_UPDATES = 1.5
SECONDS_TO_FLUSH = 5.0
LAST_PHASES = ("decoding", "muxing")
"""No update is sent this near to the result: RunPod's client gives no order, and it might arrive after it."""


class JobProgress:
    """Progress as RunPod's status shows it: at most one update every ``SECONDS_BETWEEN_UPDATES``."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.phase not in LAST_PHASES and now - self._last >= SECONDS_BETWEEN_UPDATES:
            self._last = now
            runpod.serverless.progress_update(
                self._job, {"phase": progress.phase, "step": progress.step, "steps": progress.steps}
            )

    @staticmethod
    def finish() -> None:
        """Wait until RunPod's client has sent what it was given, but not for long.

        Each update is a thread of the client's own, known by its name. To be removed once runpod can be
        asked to wait, or sends updates in order.
        """
        deadline = time.monotonic() + SECONDS_TO_FLUSH
        for thread in threading.enumerate():
            if thread.name.endswith("(_thread_target)"):
                thread.join(timeout=max(0.0, deadline - time.monotonic()))


def view_error(error: LTX2Error) -> dict[str, Any]:
    """A job's result when it failed: one string as ``error``, as RunPod has it, and our code and field."""
    answer = {"error": str(error), "error_code": error.code}
    return answer | ({"field": error.field} if error.field else {})


class Worker:
    """Answers jobs with the fields of ``POST /generate``."""

    def __init__(self, studio: Direct) -> None:
        self.studio = studio

    async def handler(self, job: dict[str, Any]) -> dict[str, Any]:
        """A job's result: the response of ``POST /generate``, or ``error``, ``error_code`` and ``field``."""
        try:
            if self.studio.settings.runpod_jobs_url is None:
                with TerminalProgress() as bar:
                    return await self._generate(job, bar)
            updates = JobProgress(job)
            try:
                return await self._generate(job, updates)
            finally:
                await asyncio.to_thread(updates.finish)
        except LTX2Error as error:
            return view_error(error)
        except Exception:
            # RunPod would send a traceback and the host's name to the caller
            log.exception("a job failed")
            return view_error(Internal("the job failed; the worker's log says why"))

    async def _generate(self, job: dict[str, Any], progress: OnProgress) -> dict[str, Any]:
        request, sources = parse(job.get("input"))
        async with self.studio.run(request, sources, progress) as (asked, clip):
            file = await asyncio.to_thread(clip.path.read_bytes)
            field, prefix = file_field(asked)
            return {field: prefix + pybase64.b64encode(file).decode()} | view(asked, clip)


def main() -> int:
    try:
        settings = load_settings()
    except InvalidRequest as error:
        print(error.message, file=sys.stderr)  # noqa: T201
        return 2
    # importing runpod has set up the root logger already
    logging.getLogger("ltx2").setLevel(settings.log_level)
    runpod.serverless.log.set_level(settings.runpod_log_level)
    studio = Direct(settings, checked(LocalEngine(settings), settings))
    studio.load()
    runpod.serverless.start({"handler": Worker(studio).handler})
    return 0


if __name__ == "__main__":
    sys.exit(main())
