"""Progress is told now and then, and one update after the other."""

import threading
import time
from typing import Any

from ltx2.engine import Progress
from ltx2.serverless.updates import LAST_PHASES, Updates


def test_updates_are_few_and_none_is_near_the_end() -> None:
    sent: list[dict[str, Any]] = []
    began = time.monotonic()
    updates = Updates({"id": "job"}, lambda _, update: sent.append(update))
    updates.seconds_between = 0.3
    step = 0
    while not sent:
        for phase in LAST_PHASES:
            updates(Progress(phase))
        updates(Progress("denoising", step := step + 1, 10**9))
        time.sleep(0.001)
    for _ in range(100):
        updates(Progress("denoising", 10**9, 10**9))
    updates.finish()
    assert len(sent) <= (time.monotonic() - began) / updates.seconds_between
    assert sent[0] == {"phase": "denoising", "step": step, "steps": 10**9}


def test_nothing_is_sent_while_an_update_is_on_its_way_and_the_end_waits_for_it() -> None:
    sent: list[dict[str, Any]] = []
    arrive, arrived = threading.Event(), threading.Event()

    def send(_: dict[str, Any], update: dict[str, Any]) -> None:
        sent.append(update)
        threading.Thread(target=_thread_target).start()  # so does RunPod's client

    def _thread_target() -> None:
        arrive.wait()
        arrived.set()

    updates = Updates({"id": "job"}, send)
    updates.seconds_between = 0.3
    began = time.monotonic()
    while time.monotonic() - began < 3 * updates.seconds_between:
        updates(Progress("denoising", 1, 2))
        time.sleep(0.005)
    assert len(sent) == 1
    threading.Timer(0.05, arrive.set).start()
    updates.finish()
    assert arrived.is_set()
