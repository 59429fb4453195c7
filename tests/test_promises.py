"""What Switchgear promises, and the tests that would break with it.

A promise whose test is gone, or was made smaller, fails here. Each entry is a test of a module below
`tests`; what a promise says is said in one line.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROMISES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "P1": (
        "every input row is in results, in failures or skipped, else nothing is committed",
        {
            "simulator/test_simulator.py": ("test_no_seed_breaks_a_promise",),
            "transforms/test_commit.py": ("test_a_lost_doubled_or_strange_row_is_never_committed",),
            "transforms/test_wiring.py": (
                "test_bundles_that_are_repeated_give_the_same_rows_and_no_second_commit",
                "test_the_manifest_accounts_for_every_row",
            ),
        },
    ),
    "P2": (
        "a request whose answer is on record is never sent again",
        {
            "simulator/test_simulator.py": ("test_no_seed_breaks_a_promise",),
            "simulator/test_crash_points.py": ("test_a_job_survives_its_end_at_every_step",),
            "e2e/test_kills.py": ("test_a_killed_run_never_pays_twice_for_an_answered_document",),
            "e2e/test_light_kills.py": ("test_a_job_killed_again_and_again_ends_as_if_it_had_not_been",),
            "e2e/test_storm.py": ("test_after_a_storm_every_answer_that_was_billed_is_in_a_row_or_named",),
        },
    ),
    "P3": (
        "spend never passes the cap",
        {
            "simulator/test_simulator.py": (
                "test_no_seed_breaks_a_promise",
                "test_no_seed_breaks_a_promise_on_object_storage",
            ),
            "transforms/call/test_budget.py": (
                "test_eight_processes_with_64_callers_each_make_50_calls_on_a_cap_of_50",
                "CapMachine",
            ),
            "transforms/call/test_budget_parts.py": (
                "PartsMachine",
                "test_whoever_dies_at_a_change_loses_what_it_had_leased_and_nothing_else",
                "test_a_run_whose_start_dies_at_any_change_is_counted_by_the_next",
                "test_what_workers_of_the_run_before_draw_while_the_next_one_starts_is_counted_or_refused",
            ),
            "transforms/call/test_caps.py": (
                "test_any_number_of_workers_race_for_a_cap_and_none_passes_it",
                "Deep",
                "CentreMachine",
            ),
            "transforms/test_spend.py": (
                "test_an_answer_without_usage_counts_at_its_worst_after_its_commit_too",
            ),
            "e2e/test_storm.py": ("test_a_cap_holds_in_a_storm_and_what_was_paid_is_delivered",),
        },
    ),
    "P4": (
        "a kill or a power cut at any instant loses no recorded answer",
        {
            "simulator/test_crash_points.py": (
                "test_a_job_survives_its_end_at_every_step",
                "test_a_job_survives_a_disk_that_fails_at_every_step",
                "test_a_job_survives_the_end_of_its_recovery",
            ),
            "transforms/call/test_ledger.py": (
                "test_every_prefix_gives_exactly_the_whole_frames_in_it",
                "test_no_flipped_bit_ever_gives_a_wrong_record",
            ),
        },
    ),
    "P5": (
        "readers of results see committed rows and whole files alone",
        {
            "simulator/test_commit_races.py": (
                "test_in_every_order_one_writer_wins_and_readers_see_its_parts_alone",
            ),
            "transforms/test_commit.py": ("test_of_racing_writers_one_wins_whatever_the_order",),
        },
    ),
    "P6": (
        "a late zombie changes nothing that is committed",
        {
            "simulator/test_commit_races.py": (
                "test_in_every_order_one_writer_wins_and_readers_see_its_parts_alone",
            ),
            "transforms/test_commit.py": (
                "test_a_zombie_among_the_writers_of_the_next_attempt_changes_nothing",
            ),
        },
    ),
    "P7": (
        "a row is paid for twice at most: an answer, and one repair",
        {
            "simulator/test_simulator.py": ("test_no_seed_breaks_a_promise",),
            "e2e/test_eight_faults.py": ("test_a_batch_of_eight_with_a_flaky_row_bills_eight_answers",),
            "transforms/test_fault_matrix.py": ("test_a_fault_online_has_its_class_and_its_price",),
        },
    ),
    "P8": (
        "no row waits for ever, and a Retry-After is kept by the whole lane",
        {
            "transforms/call/test_engine_core.py": (
                "test_a_document_ends_at_its_deadline_even_if_its_provider_never_recovers",
                "test_a_hanging_call_ends_at_the_request_timeout",
                "test_a_retry_after_parks_the_whole_lane_and_not_only_its_document",
                "test_a_retry_after_beyond_two_minutes_closes_the_lane_and_fails_its_documents_retryably",
            ),
            "transforms/call/test_flow_control.py": (
                "test_long_waits_are_kept_by_the_whole_lane_however_much_gets_through",
            ),
            "transforms/call/test_waits.py": ("test_a_longer_wait_is_kept_in_full_always",),
        },
    ),
    "P9": (
        "a rate limit fails no row, is used to 95 % and is not stormed",
        {
            "transforms/call/test_pace.py": (
                "test_at_least_95_percent_of_a_moving_limit_is_used_and_it_is_not_stormed",
                "test_a_lane_wins_its_rate_back_under_noise_once_a_limit_is_gone",
            ),
            "transforms/call/test_told_waits.py": (
                "test_waits_that_are_meant_cost_nothing_of_a_moving_limit",
            ),
            "transforms/call/test_flow_control.py": (
                "test_a_rate_limit_fails_no_row_is_used_to_95_percent_and_not_stormed",
            ),
        },
    ),
    "P10": (
        "nothing truncated, refused, filtered or that breaks its schema is a result",
        {
            "transforms/test_fault_matrix.py": (
                "test_a_fault_online_has_its_class_and_its_price",
                "test_a_paid_fault_in_a_batch_is_what_it_is_online",
            ),
            "transforms/call/test_wire_formats.py": (
                "test_every_stop_reason_that_the_official_sdk_knows_is_decided",
            ),
        },
    ),
    "P11": (
        "rows can't influence each other",
        {
            "e2e/test_isolation.py": ("test_hostile_documents_change_nothing_in_the_rows_of_the_others",),
            "transforms/test_prompt.py": ("test_one_rendering_leaves_nothing_for_the_next",),
        },
    ),
    "P12": (
        "a row never leaves its allowed providers and regions",
        {
            "transforms/call/test_regions.py": (
                "test_a_document_is_seen_by_backends_of_its_own_region_alone",
            ),
            "transforms/test_route.py": ("test_a_policy_that_can_not_be_judged_lets_nothing_pass",),
        },
    ),
    "P13": (
        "no key and no document's text in logs, exceptions, records, parameters or graphs",
        {
            "e2e/test_canaries.py": (
                "test_forty_planted_strings_are_nowhere_and_nothing_is_unpickled_from_storage",
            ),
            "e2e/test_eight_faults.py": (
                "test_a_planted_key_is_found_nowhere_after_a_run_that_fails_in_every_way",
            ),
        },
    ),
    "P14": (
        "nothing that lay in storage is unpickled",
        {
            "e2e/test_canaries.py": (
                "test_forty_planted_strings_are_nowhere_and_nothing_is_unpickled_from_storage",
            ),
            "transforms/embed/test_model_files.py": (
                "test_pickled_weights_are_never_loaded_and_the_message_says_what_to_do",
            ),
        },
    ),
    "P15": (
        "any bytes named *.parquet cost bounded memory and time",
        {
            "hostile/test_mutants.py": ("test_every_mutant_ends_as_a_refusal_a_failed_batch_or_rows",),
            "hostile/test_bombs.py": ("test_no_bomb_takes_more_than_a_reader_may",),
        },
    ),
    "P16": (
        "a key goes to allow-listed hosts alone, along no redirect, to no private address unless configured",
        {
            "transforms/call/test_address.py": (
                "test_an_address_that_could_give_a_key_away_is_refused_and_not_repeated",
                "test_a_name_never_leads_to_link_local_and_only_localhost_to_this_machine",
                "test_a_providers_own_name_never_leads_to_a_private_network",
            ),
            "transforms/call/test_transport.py": (
                "test_a_redirect_is_a_response_and_is_not_followed",
                "test_an_address_that_is_no_backends_gets_no_socket",
            ),
            "hostile/test_names.py": (
                "test_nothing_is_written_outside_the_output_and_nothing_is_called_after_data",
            ),
        },
    ),
    "P17": (
        "no run against a control plane that lets anybody in",
        {"flows/test_server.py": ("test_a_server_elsewhere_that_lets_anybody_in_is_refused",)},
    ),
    "P18": (
        "dependencies are locked, and nothing needs the network at import",
        {"test_imports.py": ("test_every_module_can_be_imported_with_the_network_off",)},
    ),
    "P19": (
        "the cost column adds up",
        {
            "simulator/test_simulator.py": ("test_no_seed_breaks_a_promise",),
            "transforms/test_verify.py": (
                "test_any_cost_field_of_a_result_or_failure_that_was_changed_is_found",
            ),
        },
    ),
    "P20": (
        "provider batches keep P1 to P4",
        {
            "transforms/batchmode/test_batch_runs.py": (
                "test_a_lost_response_to_the_submission_makes_no_second_batch",
                "test_lines_of_strangers_and_repeated_lines_change_nothing",
                "test_what_a_batch_left_undone_goes_out_again_and_then_online",
            ),
            "transforms/batchmode/test_crashes.py": (
                "test_a_process_killed_anywhere_in_the_submission_leaves_one_batch",
                "test_a_process_killed_anywhere_while_collecting_loses_and_repeats_nothing",
            ),
        },
    ),
}
SIZES = {
    "simulator.test_simulator.SEEDS": 5000,
    "simulator.test_commit_races.RACES": 10_000,
    "e2e.test_isolation.CLEAN": 2000,
    "e2e.test_isolation.HOSTILE": 200,
}
"""How much a test does at least, when no environment variable says otherwise."""


@lru_cache
def names_in(module: str) -> frozenset[str]:
    """The test functions and state machines that a module defines."""
    tree = ast.parse((TESTS / module).read_text("utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))


def test_each_of_the_twenty_promises_is_here() -> None:
    assert list(PROMISES) == [f"P{number}" for number in range(1, 21)]


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_has_the_tests_that_break_with_it(promise: str) -> None:
    says, modules = PROMISES[promise]
    assert modules, f"{promise} ({says}) has no test"
    gone = [
        f"{module}: {name}"
        for module, names in modules.items()
        for name in names
        if not (TESTS / module).exists() or name not in names_in(module)
    ]
    assert gone == [], f"{promise} ({says}) has lost tests: name the ones that hold it now"


def test_tests_are_as_large_as_promised() -> None:
    for place, least in SIZES.items():
        module, _, constant = place.rpartition(".")
        assert getattr(import_module(f"tests.{module}"), constant) >= least, place


def test_at_least_twenty_defects_are_seeded() -> None:
    assert len(import_module("tests.simulator.mutants").MUTANTS) >= 60


def test_every_package_of_the_lock_is_named_with_its_hash() -> None:
    lock = (TESTS.parent / "infra" / "locks" / "requirements.txt").read_text("utf-8")
    entries = [entry for entry in lock.replace("\\\n", "").splitlines() if entry and entry[0] not in "# -"]
    assert len(entries) > 150
    assert [entry for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []
