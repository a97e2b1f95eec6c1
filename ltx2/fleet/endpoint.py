"""An engine that has its clips made by a RunPod serverless endpoint, through RunPod's own client."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ltx2.engine import CancelFlag, Clip, EngineStatus, OnProgress
from ltx2.errors import EngineDown, LTX2Error, NotReady, WorkerCrashed
from ltx2.fleet.answers import OVER, RUNNING, WAITING, output_of, refusal_of
from ltx2.fleet.arrival import Arrival
from ltx2.fleet.following import Following
from ltx2.fleet.notes import Note, Notes
from ltx2.fleet.parcel import Parcel, digest_of, key_for, linked, media_type_of, names_of, packed, too_large
from ltx2.fleet.pulse import Pulse, fault_of
from ltx2.fleet.remote import Document, Lost, Odd, Refused, Remote, Unreached
from ltx2.fleet.watch import Watch, closing
from ltx2.media.bucket import Bucket
from ltx2.request import GenerationRequest
from ltx2.settings import Settings

log = logging.getLogger(__name__)

USEFUL = {WAITING, RUNNING} | OVER - {"CANCELLED"}
"""States of a job that an earlier server has begun, and that stands for the same generation."""
STATUSES_OF_THE_REQUEST = (400, 413, 422)
"""Answers that another try would get, too."""
STATUSES_OF_A_FAILURE = (403, 500, 502)
"""Answers that may be about one request alone (403: its words, to a firewall), or about none."""
SECONDS_TO_TIDY = 10.0


class EndpointEngine:
    """Implements :class:`ltx2.engine.Engine` by jobs of a RunPod endpoint, whose workers are this project's.

    What was begun there is noted below the data folder, so that a server that was killed follows it when it is
    asked for the same clip again.

    Args:
        settings: name the endpoint and the key.

    Raises:
        InvalidRequest: one of them is missing; the message names the variable.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._remote = Remote(settings)
        self._bucket = Bucket.of_settings(settings)
        self._pulse = Pulse(self._remote)
        self._notes = Notes(settings.data_dir.absolute() / "engine" / "runpod")
        allow = self._bucket.allow if self._bucket else frozenset()
        self._arrival = Arrival(settings, settings.allowed_targets | allow)
        self._lock = threading.Lock()
        self._watches: set[Watch] = set()
        self._is_closed = False
        self._model: str | None = None
        """What made the last clip."""
        self._used_at = time.monotonic()

    def load(self) -> None:
        """Ask whether the endpoint can be used, now and from now on.

        Raises:
            EngineDown: it cannot; whether it can again is asked all the time.
        """
        if self._is_closed:
            raise closing()
        self._notes.sweep()
        self._arrival.sweep()
        self._pulse.ask()
        self._pulse.start()
        self._check()

    def status(self) -> EngineStatus:
        fault = self._pulse.fault
        return EngineStatus(
            loaded=(self._model,) if self._model else (),
            resident_gb=0.0,
            budget_gb=0.0,
            ready=self._pulse.is_known and fault is None,
            fault=fault,
            recovers=True,
            seats=self._settings.remote_jobs,
            idle_seconds=0.0 if self._watches else time.monotonic() - self._used_at,
        )

    def close(self) -> None:
        """End every generation in hand with EngineDown. What is made at RunPod is made on."""
        with self._lock:
            self._is_closed = True
            watches = list(self._watches)
        self._pulse.close()
        for watch in watches:
            watch.close()
        self._remote.close()

    def generate(
        self,
        request: GenerationRequest,
        media: Mapping[str, bytes],
        on_progress: OnProgress,
        cancelled: CancelFlag,
    ) -> Clip:
        self._pulse.start()
        with self._watching(cancelled) as watch, self._noted(request, media) as note:
            is_going_on = False
            try:
                known = self._found(note, watch, on_progress)
                job = note.job or self._begin(request, media, note, watch)
                document = self._following(job, watch, on_progress).until_over(known)
                output = output_of(document, names_of(request, media), self._settings.deadline_seconds)
                clip = self._arrival.clip(request, output, watch)
            except EngineDown:
                is_going_on = note.job is not None
                raise
            finally:
                if not is_going_on:
                    self._tidy(note)
            self._model = clip.model
            return clip

    def _check(self) -> None:
        if fault := self._pulse.fault:
            raise EngineDown(fault, hint="try again later")

    @contextmanager
    def _watching(self, cancelled: CancelFlag) -> Iterator[Watch]:
        """What wakes a generation, within which it is in hand."""
        watch = Watch(cancelled)
        with self._lock:
            if self._is_closed:
                raise closing()
            self._watches.add(watch)
        try:
            yield watch
        finally:
            with self._lock:
                self._watches.discard(watch)
                self._used_at = time.monotonic()

    @contextmanager
    def _noted(self, request: GenerationRequest, media: Mapping[str, bytes]) -> Iterator[Note]:
        with contextlib.ExitStack() as stack:
            try:
                note = stack.enter_context(self._notes.held(digest_of(request, media)))
            except OSError as error:
                raise NotReady(
                    f"the folder for notes cannot be made: {error.strerror}",
                    hint="set LTX2_DATA_DIR to a folder that this user can write",
                ) from error
            yield note

    def _following(self, job: str, watch: Watch, on_progress: OnProgress) -> Following:
        seconds = self._settings.deadline_seconds
        doubt = self._pulse.doubt
        return Following(self._remote, job, watch, on_progress=on_progress, on_silence=doubt, seconds=seconds)

    def _found(self, note: Note, watch: Watch, on_progress: OnProgress) -> Document | None:
        """What RunPod says of the job that an earlier server has begun, if it is of use."""
        if note.job is None:
            return None
        known = self._following(note.job, watch, on_progress).first()
        if known is not None and known["status"] in USEFUL:
            log.info("following job %s, which was begun before", note.job)
            return known
        self._tidy(note)
        return None

    def _begin(self, request: GenerationRequest, media: Mapping[str, bytes], note: Note, watch: Watch) -> str:
        """Send a job, and note its id, which is returned."""
        watch.check()
        self._check()
        parcel = packed(request, media, self._settings) or self._with_links(request, media, note, watch)
        watch.check()
        try:
            job = self._remote.run(parcel.body)
        except Refused as error:
            is_failure = error.status in STATUSES_OF_A_FAILURE
            if error.status not in STATUSES_OF_THE_REQUEST and not (
                is_failure and self._pulse.is_its_own_fault(note.key)
            ):
                raise self._down(error) from None
            log.warning("the RunPod endpoint refused a request with %d", error.status)
            raise refusal_of(error.answer, parcel.names) from None
        except Unreached as error:
            raise self._down(error) from None
        except Odd as error:
            self._pulse.refused(fault_of(error))
            raise WorkerCrashed("the RunPod endpoint gave no id for the generation") from None
        except Lost:
            # so that the next one is not sent before the endpoint answers again
            self._pulse.ask()
            raise WorkerCrashed("it is not known whether the RunPod endpoint began the generation") from None
        note.write(job, note.media)
        self._pulse.took(note.key)
        return job

    def _with_links(self, request: GenerationRequest, media: Mapping[str, bytes], note: Note, watch: Watch) -> Parcel:
        """A request whose media lie in the bucket."""
        if self._bucket is None:
            raise too_large(media)
        sources = {}
        for name, data in media.items():
            key = key_for(data)
            note.media = (*note.media, key)
            sources[name] = watch.run(self._bucket.put(key, data, media_type_of(request, name, data)))
        return linked(request, sources, self._settings)

    def _down(self, error: Refused | Lost | Unreached) -> EngineDown:
        """Begin nothing until the endpoint can be used again."""
        fault = fault_of(error)
        self._pulse.refused(fault)
        return EngineDown(fault, hint="try again later")

    def _tidy(self, note: Note) -> None:
        """A job is over: forget it, and remove what was put into the bucket for it."""
        if note.media and self._bucket is not None:
            try:
                asyncio.run(_removed(self._bucket, note.media))
            except (LTX2Error, OSError):
                log.warning("an input could not be removed from the bucket; its link will expire")
        note.remove()


async def _removed(bucket: Bucket, keys: tuple[str, ...]) -> None:
    # nobody waits longer for a clip that is there, nor the server for its end
    async with asyncio.timeout(SECONDS_TO_TIDY):
        for key in keys:
            await bucket.remove(key)
