from dataclasses import replace

import pytest

from infra.bench.scale.simulate import ROWS, Costs, simulate, table

QUIET = Costs(write_s=0.0, record_s=0.0)


def test_an_unhindered_worker_goes_as_fast_as_its_core_or_its_calls_in_flight() -> None:
    by_calls = simulate(1, QUIET, 3600)
    assert by_calls.rows_per_s == pytest.approx(256, rel=0.01)
    by_core = simulate(1, replace(QUIET, latency_s=0.0, cpu_s=0.001), 3600)
    assert by_core.rows_per_s == pytest.approx(1000, rel=0.01)
    assert by_core.held_back_by == "nothing"


def test_workers_together_get_what_the_provider_allows_and_no_more() -> None:
    found = simulate(50, replace(QUIET, provider_rps=1000), 3600)
    assert found.rows_per_s == pytest.approx(1000, rel=0.1)
    assert found.rows_per_s <= 1000
    assert found.held_back_by.startswith("the provider's rate")


def test_a_record_that_takes_a_second_is_asked_so_seldom_that_a_hundred_workers_share_it() -> None:
    alone, many = simulate(1, Costs(), 3600), simulate(100, Costs(), 3600)
    assert (many.parts, many.record_changes <= 3600) == (1, True)
    assert many.rows_per_s >= 0.9 * 100 * alone.rows_per_s


def test_with_draws_of_a_fixed_size_the_record_would_hold_everybody_back() -> None:
    many = simulate(200, Costs(largest_draw=256, parts=1), 3600)
    assert many.rows_per_s <= 256
    assert many.held_back_by.startswith("the budget record")


def test_parts_of_the_record_keep_workers_busy_that_wait_for_one() -> None:
    parted, single = Costs(), Costs(parts=1)
    few = [simulate(50, costs, 200.0) for costs in (parted, single)]
    assert few[0] == few[1]
    many = [simulate(300, costs, 500.0) for costs in (parted, single)]
    assert [outcome.parts for outcome in many] == [6, 1]
    assert many[0].rows > 0.6 * 300 * 500 / parted.row_s
    assert many[1].rows < 0.1 * 300 * 500 / parted.row_s
    allowed = 0.5 * 120 * 1500 / parted.row_s
    assert 0.98 * allowed < simulate(120, Costs(cap=0.5), 1500.0).rows <= allowed


def test_a_preempted_worker_costs_at_most_an_open_segment_of_paid_rows() -> None:
    spot = simulate(100, replace(Costs(), preempted_per_hour=1.0), 3600, seed=3)
    assert 0 < spot.paid_again <= 256 * 150
    assert spot.paid_again % 256 == 0
    assert spot.rows_per_s < simulate(100, Costs(), 3600, seed=3).rows_per_s


def test_the_same_seed_is_the_same_run_and_only_whole_batches_count() -> None:
    one, two = (simulate(20, Costs(preempted_per_hour=0.5), 1800, seed=7) for _ in range(2))
    assert one == two
    assert one.rows % ROWS == 0


def test_the_table_has_a_line_for_every_number_of_workers() -> None:
    lines = list(table("title", Costs(), (1, 10), 600))
    assert [line.split()[0] for line in lines[2:]] == ["1", "10"]
