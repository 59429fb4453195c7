"""Stopping a pipeline that other processes run: they end it themselves, or it is cancelled."""

from __future__ import annotations

from pathlib import Path

import pytest
from apache_beam.runners.runner import PipelineState

from flows.worker import STOP_GRACE_S
from pipelines.enrich import DRAIN_S, END_BY_ITSELF_S, Elsewhere
from schemas.run import RunContext
from transforms.layout import stop_path


class Clock:
    """Time that passes while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class HandedOver:
    """A pipeline on a cluster that ends by itself at an instant; asking for its state takes a while."""

    def __init__(self, clock: Clock, ends_at: float, answers_in_s: float = 0.0) -> None:
        self._clock, self._ends_at, self._answers_in_s = clock, ends_at, answers_in_s
        self.cancelled_at: float | None = None

    @property
    def state(self) -> str:
        self._clock.now += self._answers_in_s
        return PipelineState.DONE if self._clock.now >= self._ends_at else PipelineState.RUNNING

    def cancel(self) -> None:
        self.cancelled_at = self._clock.now


def stopped(folder: Path, ends_at: float, answers_in_s: float = 0.0) -> tuple[HandedOver, float, bool]:
    """The pipeline after it was stopped, how long that took, and whether its workers were told."""
    clock = Clock()
    elsewhere, run = Elsewhere(clock.monotonic, clock.sleep), context(folder)
    pipeline = HandedOver(clock, ends_at, answers_in_s)
    elsewhere.result = pipeline  # type: ignore[assignment]
    elsewhere.stop(run)
    return pipeline, clock.now - 100.0, (folder / stop_path(run.run_id)).exists()


def context(folder: Path) -> RunContext:
    return RunContext("run-1", str(folder), "w" * 64, False, 8)


def test_a_pipeline_whose_workers_settle_in_time_is_not_cancelled(tmp_path: Path) -> None:
    pipeline, took, told = stopped(tmp_path, ends_at=107.0)
    assert (pipeline.cancelled_at, took, told) == (None, 7.0, True)


@pytest.mark.parametrize("answers_in_s", [0.0, 2.0])
def test_one_that_does_not_end_is_cancelled_before_its_launcher_would_be_killed(
    tmp_path: Path, answers_in_s: float
) -> None:
    pipeline, took, told = stopped(tmp_path, ends_at=float("inf"), answers_in_s=answers_in_s)
    assert told
    assert pipeline.cancelled_at == 100.0 + took
    assert END_BY_ITSELF_S <= took <= END_BY_ITSELF_S + 1.0 + 2 * answers_in_s
    assert END_BY_ITSELF_S + DRAIN_S < STOP_GRACE_S


def test_one_that_was_not_handed_over_yet_needs_no_stopping(tmp_path: Path) -> None:
    Elsewhere().stop(context(tmp_path))
    assert not list(tmp_path.iterdir())
