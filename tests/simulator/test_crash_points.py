"""Every durable step of a small job, and every way in which it can be the last or fail."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from random import Random

import pytest

from schemas.limits import Limits
from tests.simulator.shape import Shape, make_refs
from tests.simulator.simulate import Ended, simulate
from tests.simulator.world import CAN_FAIL, Disaster

SMALL = Shape(
    refs=make_refs([3, 1]),
    limits=Limits(max_calls=2, request_timeout_s=2.0, document_deadline_s=60.0),
    in_flight=2,
    one_by_one=True,
    cap=Decimal(1),
    settles=True,
)
"""Two batches over two attempts: a result of each route, a failure that stays, one that is tried again."""


def small(first_life: list[Disaster], second_life: list[Disaster]) -> Shape:
    """The small job, with what happens in its first two lives; the vendor is down in the first."""
    lives = iter((first_life, second_life))

    def strike(_source: Random, _steps: int) -> list[Disaster]:
        return next(lives)

    refs = SMALL.refs
    return replace(
        SMALL,
        lives=2,
        strike=strike,
        poison={(refs[0].batch_id, 0): "refused"},
        no_text=frozenset({(refs[0].batch_id, 2)}),
        script={(refs[0].batch_id, 1): ["500", "500"]},
    )


def play(first_life: list[Disaster], second_life: list[Disaster]) -> Ended:
    ended = simulate(1, small(first_life, second_life))
    if ended.violation is not None:
        pytest.fail(f"{first_life + second_life}: {ended.violation}\n\n{ended.story}", pytrace=False)
    return ended


def steps_of(life: int) -> dict[int, str]:
    """The steps of a life in which nothing happens: number → kind."""
    prefix = f"{life}."
    steps: dict[int, str] = {}
    for _, who, what in play([], []).world.trace:
        number, _, rest = what.partition(" ")
        if who.startswith(prefix) and number.isdigit():
            steps[int(number)] = next((k for k in CAN_FAIL if rest.startswith(k)), rest)
    return steps


STEPS = {life: steps_of(life) for life in (1, 2)}


def test_the_small_job_goes_through_every_kind_of_step() -> None:
    kinds = {kind for steps in STEPS.values() for kind in steps.values()}
    assert kinds >= CAN_FAIL - {"ledger cut"}
    assert 40 <= len(STEPS[1]) <= 200
    assert 20 <= len(STEPS[2]) <= 200


@pytest.mark.parametrize("kind", ["kill", "kill run", "power"])
@pytest.mark.parametrize("life", [1, 2])
def test_a_job_survives_its_end_at_every_step(life: int, kind: str) -> None:
    for step in range(1, max(STEPS[life]) + 2):
        struck = [Disaster(step, kind)]
        play(struck if life == 1 else [], struck if life == 2 else [])


@pytest.mark.parametrize("applied", [False, True], ids=["refused", "acknowledgement lost"])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("kind", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("life", [1, 2])
def test_a_job_survives_a_disk_that_fails_at_every_step(
    life: int, kind: str, lasting: bool, applied: bool
) -> None:
    for step in (number for number, what in STEPS[life].items() if what in CAN_FAIL):
        struck = [Disaster(step, kind, lasting, applied)]
        play(struck if life == 1 else [], struck if life == 2 else [])


@pytest.mark.parametrize("second", ["kill run", "power"])
def test_a_job_survives_the_end_of_its_recovery(second: str) -> None:
    """Killed at every fourth step, and the run that recovers from that at every fourth of its steps."""
    for step in range(1, max(STEPS[1]) + 1, 4):
        for again in range(1, 30, 4):
            play([Disaster(step, "power")], [Disaster(again, second)])
