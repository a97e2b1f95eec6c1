"""Whose turn it is, by example and for whatever order things happen in."""

import random

import pytest

from ltx2.studio.turns import Turns


def taken(turns: Turns) -> list[str]:
    """All that wait, in the order of their turns."""
    order = []
    while (job_id := turns.next()) is not None:
        order.append(job_id)
    return order


def test_the_oldest_of_one_owner_comes_first() -> None:
    turns = Turns()
    for job_id in ("c", "a", "b"):
        turns.add(job_id, "ann")
    assert taken(turns) == ["c", "a", "b"]
    assert turns.next() is None


def test_the_higher_priority_comes_first_and_then_the_older() -> None:
    turns = Turns()
    for job_id, priority in (("low", -1), ("first", 0), ("high", 1), ("second", 0), ("higher", 7), ("high too", 1)):
        turns.add(job_id, "ann", priority)
    assert taken(turns) == ["higher", "high", "high too", "first", "second", "low"]


def test_owners_take_turns_however_much_one_of_them_sends() -> None:
    turns = Turns()
    for number in range(4):
        turns.add(f"ann {number}", "ann")
    turns.add("bob 0", "bob")
    turns.add("bob 1", "bob")
    assert turns.next() == "ann 0"
    turns.add("eve 0", "eve")
    assert taken(turns) == ["bob 0", "ann 1", "eve 0", "bob 1", "ann 2", "ann 3"]


def test_a_priority_counts_among_the_jobs_of_its_owner_only() -> None:
    turns = Turns()
    turns.add("ann low", "ann", -1)
    turns.add("ann lower", "ann", -2)
    turns.add("bob high", "bob", 1)
    turns.add("bob higher", "bob", 2)
    assert taken(turns) == ["ann low", "bob higher", "ann lower", "bob high"]


def test_an_owner_who_comes_back_waits_behind_those_who_wait() -> None:
    turns = Turns()
    turns.add("ann 0", "ann")
    turns.add("bob 0", "bob")
    assert turns.next() == "ann 0"
    turns.add("ann 1", "ann", 9)
    assert taken(turns) == ["bob 0", "ann 1"]


def test_what_had_its_turn_already_comes_before_everything_else() -> None:
    turns = Turns()
    turns.add("ann 0", "ann", 5)
    turns.add("bob 0", "bob")
    assert turns.next() == "ann 0"
    turns.add("ann 1", "ann", 10**6)
    turns.add("bob 1", "bob")
    turns.add_first("ann 0", "ann")
    assert taken(turns) == ["ann 0", "bob 0", "ann 1", "bob 1"]


def test_what_was_removed_never_has_its_turn() -> None:
    turns = Turns()
    for job_id in ("a", "b", "c"):
        turns.add(job_id, "ann")
    assert turns.remove("b")
    assert not turns.remove("b")
    assert not turns.remove("never seen")
    assert len(turns) == 2
    assert (turns.waiting("ann"), turns.waiting("bob")) == (2, 0)
    assert taken(turns) == ["a", "c"]
    assert not turns.remove("a")


def test_only_what_waits_is_counted() -> None:
    turns = Turns()
    assert len(turns) == 0
    turns.add("a", "ann")
    turns.add("b", "bob")
    assert len(turns) == 2
    turns.next()
    assert len(turns) == 1
    turns.add_first("a", "ann")
    assert len(turns) == 2
    turns.remove("a")
    turns.remove("b")
    assert len(turns) == 0
    assert turns.next() is None


def test_an_owner_whose_jobs_were_all_removed_keeps_nobody_waiting() -> None:
    turns = Turns()
    for number in range(1000):
        turns.add(str(number), "ann")
        turns.remove(str(number))
    turns.add("b", "bob")
    assert taken(turns) == ["b"]


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_every_job_has_one_turn_and_no_owner_two_while_another_waits(seed: int) -> None:
    dice, turns = random.Random(seed), Turns()
    waiting: dict[str, tuple[str, int, int]] = {}  # job: owner, priority, number
    waits_since: dict[str, int] = {}  # owner: the move since which jobs of his have waited without a turn
    last_turn: dict[str, int] = {}
    served: list[str] = []
    removed: set[str] = set()
    for move in range(400):
        match dice.choices(("add", "next", "remove"), (5, 4, 1))[0]:
            case "add":
                job_id, owner, priority = str(move), dice.choice("abcde"), dice.randint(-1, 1)
                waits_since.setdefault(owner, move)
                turns.add(job_id, owner, priority)
                waiting[job_id] = owner, priority, move
            case "remove" if waiting:
                job_id = dice.choice(list(waiting))
                owner, *_ = waiting.pop(job_id)
                assert turns.remove(job_id)
                removed.add(job_id)
                if owner not in {owner for owner, *_ in waiting.values()}:
                    del waits_since[owner]
            case "next":
                got = turns.next()
                assert (got is None) == (not waiting)
                if got is None:
                    continue
                owner, priority, number = waiting.pop(got)
                served.append(got)
                his = [(-its, age) for whose, its, age in waiting.values() if whose == owner]
                assert all((-priority, number) < other for other in his)
                before = last_turn.get(owner, -1)
                assert not [other for other, since in waits_since.items() if other != owner and since < before]
                last_turn[owner] = move
                del waits_since[owner]
                if his:
                    waits_since[owner] = move
                if dice.random() < 0.1:  # its try came to nothing
                    turns.add_first(got, owner)
                    assert len(turns) == len(waiting) + 1
                    assert turns.next() == got
        assert len(turns) == len(waiting)
    left = taken(turns)
    assert sorted(left) == sorted(waiting)
    assert len({*served, *left, *removed}) == len(served) + len(left) + len(removed)
