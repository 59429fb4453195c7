from dataclasses import fields, replace

import pytest

from infra.bench.scale.inputs import Costs, described
from infra.bench.scale.pacing import pace
from infra.bench.scale.simulate import Case, run, scaled
from infra.bench.scale.simulated_run import Outcome, simulate

USED = Costs(bucket_writes=1e9)  # a bucket that takes all writes
QUIET = replace(USED, write_s=0.0, record_s=0.0, upload_cpu_s=0.0)


def test_an_unhindered_worker_goes_as_fast_as_its_core_or_its_calls_in_flight() -> None:
    by_calls = simulate(1, QUIET, 3600)
    assert by_calls.rows_per_s == pytest.approx(256, rel=0.02)
    by_core = simulate(1, replace(QUIET, latency_s=0.001, cpu_s=0.001), 3600)
    assert by_core.rows_per_s == pytest.approx(1000, rel=0.02)
    assert by_core.held_back_by == "nothing"


def test_workers_together_get_what_the_provider_allows_and_no_more() -> None:
    found = simulate(50, replace(QUIET, provider_rps=1000), 3600)
    assert found.rows_per_s == pytest.approx(1000, rel=0.1)
    assert found.rows_per_s <= 1000
    assert found.held_back_by.startswith("the provider's limit")


def test_a_record_that_takes_a_second_is_asked_so_seldom_that_fifty_workers_share_it() -> None:
    alone, many = simulate(1, USED, 3600), simulate(50, USED, 3600)
    assert (many.parts, many.record_changes <= 3600) == (1, True)
    assert many.rows_per_s >= 0.9 * 50 * alone.rows_per_s


def test_with_draws_of_a_fixed_size_the_record_would_hold_everybody_back() -> None:
    many = simulate(200, replace(USED, largest_draw=256, parts=1), 900)
    assert many.rows_per_s <= 256
    assert many.held_back_by.startswith("the budget record")


def test_no_object_is_changed_more_often_than_the_store_allows() -> None:
    for parts in (1, 4):
        found = simulate(100, replace(USED, parts=parts), 300)
        assert 0 < found.record_changes <= (parts + (parts > 1)) * 301
        assert found.changes_tried_again > found.record_changes  # at the beginning all come at once


def test_parts_of_the_record_keep_workers_busy_that_wait_for_one() -> None:
    parted, single = USED, replace(USED, parts=1)
    few = [simulate(50, costs, 200.0) for costs in (parted, single)]
    assert few[0] == few[1]
    many = [simulate(300, costs, 400.0) for costs in (parted, single)]
    assert [outcome.parts for outcome in many] == [6, 1]
    assert many[0].of_linear > 2 * many[1].of_linear


@pytest.mark.parametrize(("workers", "parts"), [(30, 1), (120, 3)])
def test_a_cap_is_used_up_and_never_passed(workers: int, parts: int) -> None:
    costs = replace(USED, cap=0.3)
    found = simulate(workers, costs, 1200.0)
    allowed = 0.3 * workers * 1200 / costs.row_s
    assert found.parts == parts
    assert 0.95 * allowed < found.rows <= allowed  # what is left belongs to batches that are not through
    assert found.waits["the cap"] > 0


def test_without_a_cap_no_record_is_asked() -> None:
    found = simulate(200, replace(USED, cap=float("inf")), 600)
    assert (found.record_changes, found.changes_tried_again) == (0, 0)
    assert found.of_linear > 0.9


def test_a_new_bucket_holds_many_workers_back_until_it_has_grown() -> None:
    costs = replace(Costs(), cap=float("inf"), bucket_writes=100.0, bucket_doubles_s=100.0)
    early, late = simulate(60, costs, 60), simulate(60, costs, 400)
    assert early.held_back_by.startswith("the bucket's write rate")
    assert early.of_linear < 0.7 < late.of_linear
    assert simulate(60, replace(costs, bucket_writes=1e9), 400).of_linear > 0.9


def test_a_store_slower_than_the_answers_holds_up_a_worker_by_the_window_of_its_ledger() -> None:
    fast = replace(USED, cap=float("inf"), latency_s=0.05)
    found = [simulate(1, replace(fast, write_s=write_s), 300).of_linear for write_s in (0.005, 0.05, 0.5)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.95
    assert found[2] < 0.2
    # 256 calls for each upload, and those that were in flight when no more were sent
    assert found[2] * 300 / fast.row_s <= (256 + 256) * 300 / 0.5


def test_a_preempted_worker_pays_again_what_was_in_flight_or_unsealed_and_no_more() -> None:
    spot = simulate(50, replace(USED, preempted_per_hour=4.0), 900, seed=3)
    assert spot.preempted == pytest.approx(50, abs=25)
    assert 0 < spot.paid_again <= (256 + 256 + 256) * spot.preempted
    calm = simulate(50, USED, 900, seed=3)
    assert (calm.preempted, calm.paid_again) == (0, 0)
    assert spot.rows_per_s < calm.rows_per_s


def test_the_same_seed_is_the_same_run_and_only_whole_batches_count() -> None:
    one, two = (simulate(20, replace(Costs(), preempted_per_hour=0.5), 1800, seed=7) for _ in range(2))
    assert one == two
    assert one.rows % 4096 == 0


def test_what_is_printed_does_not_depend_on_the_number_of_processes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    chosen = [
        Case("X  few", USED, (1, 2, 3)),
        Case("Y  preempted", replace(USED, preempted_per_hour=9.0), (1, 4)),
    ]
    alone, together = (list(run(chosen, (2, 3), 300, 0, jobs)) for jobs in (1, 3))
    assert alone == together
    text = "\n".join(alone)
    assert [line.split()[0] for line in alone[2:5]] == ["1", "2", "3"]
    assert text.count("X  few") == text.count("Y  preempted") == 2  # its table, and a line of all
    assert capfd.readouterr().err.count("X  few; workers: ") == 6


def outcome(workers: int, of_linear: float, **waits: float) -> Outcome:
    return Outcome(workers, 100.0, row_s=1.0, rows=int(of_linear * 100 * workers), waits=waits)


def test_it_scales_to_where_nine_tenths_of_so_many_workers_are_reached_and_says_what_grew_most() -> None:
    one = outcome(1, 0.9, latency=10.0)
    good = outcome(10, 0.85, latency=100.0)
    bad = outcome(100, 0.5, latency=1500.0, record=1000.0)
    late = outcome(1000, 0.9)
    found = scaled([one, good, bad, late])
    assert (found.near_linear_to, found.beyond, found.held_back_by) == (10, 100, "record 10%")
    assert scaled([one, good]).beyond is None


def test_each_input_is_printed_with_where_it_comes_from() -> None:
    lines = list(described(Costs()))
    assert len(lines) == len(fields(Costs))
    for line in lines:
        assert line.split("[")[1].startswith(
            (
                "measured: ",
                "published",
                "the code",
                "assumed",
                "a setting",
                "default",
                "a choice",
                "no",
                "none",
            )
        )


def test_workers_that_find_a_limit_by_themselves_reach_it_together() -> None:
    for workers in (1, 20):
        found = pace(workers, 500.0, 0.2, 256, 30.0)
        assert found.share == pytest.approx(1.0, abs=0.06)
    assert pace(1, 10_000.0, 1.0, 256, 30.0).refused_per_success == 0.0
