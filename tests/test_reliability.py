"""Floods and kills, in short; ``make soak`` runs them long."""

import asyncio
from pathlib import Path

from bench.reliability import flood, kill, verdict


def test_of_many_posts_at_once_each_becomes_one_job_that_ends_once(tmp_path: Path) -> None:
    found = asyncio.run(flood(tmp_path, 100, LTX2_QUEUE_LIMIT="70"))
    outcome = found["outcome"]
    assert verdict(outcome) == []
    assert outcome.states == {"succeeded": 100 - found["refused"]}
    assert 0 < found["refused"] <= 30
    assert (outcome.most_at_once, outcome.most_tries) == (1, 1)
    assert found["health_answers"] > 0


def test_no_job_is_lost_or_doubled_when_the_model_process_and_the_server_are_killed(tmp_path: Path) -> None:
    outcome = asyncio.run(kill(tmp_path, jobs=12, model_kills=4, server_kills=2, seconds=0.4))["outcome"]
    assert verdict(outcome) == []
    assert sum(outcome.states.values()) == 12
    assert outcome.states["succeeded"] >= 6  # six blows hit six jobs at most
    assert outcome.states["canceled"] == 0


def test_the_tiny_model_is_killed_in_the_middle_and_the_job_is_made_all_the_same(tmp_path: Path) -> None:
    found = asyncio.run(kill(tmp_path, jobs=3, model_kills=1, server_kills=0, engine="local", seconds=1.0))
    outcome = found["outcome"]
    assert verdict(outcome) == []
    assert found["model_kills"] == 1
    assert outcome.states == {"succeeded": 3}
