"""What a request will come to here, before it is sent: checked like any other, and forgotten again."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ltx2.catalogue import CATALOGUE
from ltx2.engine import EngineStatus, ModelFacts
from ltx2.errors import LTX2Error, NotReady, StillLoading
from ltx2.geometry import TRAINED_SECONDS
from ltx2.payload import GenerateBody, to_request
from ltx2.plan import Plan, make_plan
from ltx2.quote import Quote, QuoteQueue, QuoteSeconds, make_quote, predicted
from ltx2.recipes import recipe_for
from ltx2.request import DEFAULT_FRAMES, GenerationRequest, Guidance
from ltx2.settings import Settings
from ltx2.studio.database import Database
from ltx2.studio.dispatch import Dispatcher
from ltx2.studio.forecast import KEPT, Forecast
from ltx2.studio.history import last_made
from ltx2.studio.job import Job
from ltx2.studio.reception import Reception

HINT: Final = "try again in some seconds"

Before = list[tuple[Job, float | None]]
"""The jobs that wait and run, each with the seconds that it may still take, where its own progress tells."""


class Planner:
    """Belongs to the event loop.

    Args:
        settings: limits, and what a second costs.
        status: of the engine, asked when something is to be planned.
        reception: checks requests.
        dispatcher: knows who waits and runs.
    """

    def __init__(
        self, settings: Settings, status: Callable[[], EngineStatus], reception: Reception, dispatcher: Dispatcher
    ) -> None:
        self._settings = settings
        self._status = status
        self._reception = reception
        self._dispatcher = dispatcher
        self._forecast = Forecast(settings)
        # one at a time: several would take their turns with the event loop, and none was done any sooner
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="plan")

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def remember(self, database: Database) -> None:
        """Learn from the clips that servers before this one have made. Done in a thread, before all else."""
        for job in last_made(database, KEPT):
            self.learn(job)
        self._forecast.start()

    def learn(self, job: Job) -> None:
        """Learn from a job that is over."""
        if job.result is not None:
            self._forecast.learn(job.request, job.result, job.order.owner)

    async def plan(self, body: GenerateBody, owner: str) -> Quote:
        """What a request would come to. Nothing of it is kept.

        Args:
            body: as it would be sent to ``POST /generate``.
            owner: who asks; files are those of that owner.

        Raises:
            StillLoading: of the model nothing is known yet.
            NotReady: and nothing will be before it was loaded.
            LTX2Error: the request would be refused.
        """
        status = self._status()
        model = facts_of(status, self._settings)
        async with self._reception.examine(*to_request(body), owner) as request:
            before = [(live.job, live.seconds_left) for live in self._dispatcher.live.values()]
            asked = body, request, model, status, before, owner
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._quote, *asked)

    def _quote(
        self,
        body: GenerateBody,
        request: GenerationRequest,
        model: ModelFacts,
        status: EngineStatus,
        before: Before,
        owner: str,
    ) -> Quote:
        is_open = request.num_frames is None
        request, plan = self._planned(request, model, status)
        seconds = self._seconds(request, plan, model, status, owner)
        queue = self._queue(model, status, before)
        return make_quote(body, request, plan, model, seconds, queue, status, self._settings, is_open=is_open)

    def _planned(
        self, request: GenerationRequest, model: ModelFacts, status: EngineStatus
    ) -> tuple[GenerationRequest, Plan]:
        """The request as it will be made, with a length (the longest where the prompt decides), and its plan."""
        if request.num_frames is None:
            longest = int(TRAINED_SECONDS * request.exact_fps) if model.has_duration_head else DEFAULT_FRAMES
            request = request.lasting(min(longest, self._settings.max_num_frames))
        if status.fake:  # to test cards these say nothing
            request = request.model_copy(update={"guidance": Guidance(), "pipeline": "one_stage"})
        seconds = self._settings.piece_seconds
        return request, make_plan(request, model.recipe, can_refine=model.can_refine, piece_seconds=seconds)

    def _seconds(
        self, request: GenerationRequest, plan: Plan, model: ModelFacts, status: EngineStatus, owner: str
    ) -> QuoteSeconds:
        phases = self._forecast.predict(model, request, plan, is_loaded=bool(status.loaded), owner=owner)
        return predicted(phases, self._forecast.count(model))

    def _queue(self, model: ModelFacts, status: EngineStatus, before: Before) -> QuoteQueue:
        running = sum(job.state == "running" for job, _ in before)
        waiting = len(before) - running
        wait = 0.0 if not waiting and running < status.seats else self._wait(model, status, before)
        return QuoteQueue(length=waiting, running=running, seconds=None if wait is None else round(wait, 3))

    def _wait(self, model: ModelFacts, status: EngineStatus, before: Before) -> float | None:
        """How long all of them take, shared among the seats; None where that cannot be said of one."""
        wait = 0.0
        for job, left in before:
            seconds = left
            if seconds is None:
                try:
                    request, plan = self._planned(job.request, model, status)
                    seconds = self._seconds(request, plan, model, status, job.order.owner).total
                except LTX2Error:  # it will fail, and take no time
                    continue
                if seconds is None:
                    return None
                if job.state == "running" and job.started_at is not None:
                    seconds -= max(0.0, time.time() - job.started_at)
            wait += max(0.0, seconds)
        return wait / status.seats


def facts_of(status: EngineStatus, settings: Settings) -> ModelFacts:
    """What is known of the model: by itself; or by its name, where it is on another machine or was not loaded yet.

    Raises:
        StillLoading, NotReady: nothing.
    """
    if status.model is not None:
        return status.model
    if not status.ready and status.fault is None:
        raise StillLoading("the model is still being loaded", hint=HINT)
    named = settings.model_name if "model" in settings.model_fields_set else None
    name = status.loaded[0] if status.loaded else named
    # machines elsewhere may call theirs as they like
    entry = CATALOGUE.get(name or "") or CATALOGUE.get(named or "")
    if entry is None:
        hint = "set LTX2_MODEL to the name of the model there" if settings.engine == "runpod" else "make a clip first"
        raise NotReady(status.fault or "nothing is known of the model yet", hint=hint)
    kind = entry.kind if settings.recipe == "auto" else settings.recipe
    return ModelFacts(
        name=name or entry.name,
        recipe=recipe_for(entry.generation, kind),
        can_refine=entry.upsampler is not None and (kind == "distilled" or entry.lora is not None),
        has_duration_head=entry.generation == "2.5",
    )
