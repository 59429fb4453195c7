from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.failures import FailureClass
from schemas.outcomes import Assignment, Outcome
from schemas.workload import Workload
from tests.support.documents import rows
from tests.support.workloads import HOSTED, workload
from transforms.expressions import ExpressionError
from transforms.intake import inspect_rows
from transforms.probe_rows import read_table_as
from transforms.route import Decisions, choose_arm, choose_routes, compile_rules, only_pairs

FIRST_ROW = 100


def route(name: str, when: str = "TRUE", **more: Any) -> dict[str, Any]:
    chain = {} if "split" in more else {"backends": ["mini"]}
    return {"name": name, "when": when, "prompt": "topic", **chain, **more}


def reject(name: str, when: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "when": when, "reason": f"because {name}", **more}


def decide(table: pa.Table, **changes: Any) -> Decisions:
    rules = compile_rules(workload(**{"backends__other": HOSTED, **changes}))
    fields = [pa.field(f.name, pa.large_string()) if f.type == pa.string() else f for f in table.schema]
    read = read_table_as(table, pa.schema(fields))
    intake = inspect_rows(read, rules.workload.input, rules.row_filter, ())
    return choose_routes(rules, intake, FIRST_ROW)


def taken(decisions: Decisions) -> list[tuple[int, str]]:
    assert all(position + FIRST_ROW == a.row for position, a in decisions.todo)
    return [(a.row - FIRST_ROW, a.route) for _, a in decisions.todo]


def failures(decisions: Decisions) -> list[tuple[int, str, str]]:
    return [(o.assignment.row - FIRST_ROW, o.assignment.route, str(o.failure)) for o in decisions.done]


KINDS = rows(["a", "b", "c"], kind=["x", "y", None])
ROUTES = [route("xs", "kind = 'x'"), route("big", "size >= 0"), route("ys", "kind = 'y'")]


def test_a_document_goes_to_the_first_route_that_matches() -> None:
    assert taken(decide(KINDS, routes=ROUTES)) == [(0, "xs"), (1, "big"), (2, "big")]


def test_a_document_goes_to_all_routes_that_match() -> None:
    decisions = decide(KINDS, routes=ROUTES, match="all")
    assert taken(decisions) == [(0, "xs"), (0, "big"), (1, "big"), (1, "ys"), (2, "big")]


def test_an_assignment_says_where_it_goes_and_why() -> None:
    routes = [route("big", "size > 0", backends=["mini", "other"])]
    (position, assignment), *_ = decide(KINDS, routes=routes).todo
    assert position == 1
    assert assignment == Assignment(101, "big", "size > 0", ("mini", "other"), "b")


@pytest.mark.parametrize("match", ["first", "all"])
def test_a_document_that_no_route_wants_is_a_failure(match: str) -> None:
    decisions = decide(KINDS, routes=[route("xs", "kind = 'x'")], match=match)
    assert taken(decisions) == [(0, "xs")]
    assert failures(decisions) == [(1, "", "no_route"), (2, "", "no_route")]
    assert decisions.done[0].assignment.chain == ()


def test_a_policy_rule_rejects_before_anything_is_sent_and_says_why() -> None:
    decisions = decide(KINDS, policy__reject=[reject("no_x", "kind = 'x'")])
    assert taken(decisions) == [(1, "ask"), (2, "ask")]
    (outcome,) = decisions.done
    assert (outcome.failure, outcome.message) == (
        FailureClass.POLICY_REJECTED,
        "policy rule 'no_x': because no_x",
    )
    assert (outcome.assignment.route, outcome.calls, outcome.backend) == ("ask", 0, None)


def test_a_policy_rule_for_some_routes_leaves_the_others_alone() -> None:
    rules = [reject("only_xs", "TRUE", routes=["xs"]), reject("big_x", "kind = 'x'", routes=["big", "ys"])]
    decisions = decide(KINDS, routes=ROUTES, match="all", policy__reject=rules)
    assert taken(decisions) == [(1, "big"), (1, "ys"), (2, "big")]
    assert failures(decisions) == [(0, "xs", "policy_rejected"), (0, "big", "policy_rejected")]


def test_of_two_rules_the_first_is_the_reason() -> None:
    rules = [reject("one", "size >= 0"), reject("two", "TRUE")]
    decisions = decide(KINDS, policy__reject=rules)
    assert {o.message for o in decisions.done} == {"policy rule 'one': because one"}


def test_a_rejected_document_does_not_fall_through_to_the_next_route() -> None:
    decisions = decide(KINDS, routes=ROUTES, policy__reject=[reject("no_x", "kind = 'x'", routes=["xs"])])
    assert (0, "big") not in taken(decisions)


def test_faulty_rows_are_failures_and_never_routed() -> None:
    decisions = decide(rows(["a", None, "a", "d"], text=["x", "x", "x", ""]), match="all", routes=ROUTES)
    assert taken(decisions) == [(0, "big")]
    assert failures(decisions) == [(1, "", "null_id"), (2, "", "duplicate_id"), (3, "", "empty_text")]


def test_skipped_rows_are_neither_routed_nor_failures() -> None:
    decisions = decide(KINDS, input__filter="size = 1")
    assert (taken(decisions), failures(decisions)) == ([(1, "ask")], [])


def test_a_row_that_an_expression_fails_on_is_a_failure_and_its_neighbours_are_routed() -> None:
    table = rows(["a", "b", "c"], kind=["1", "two", "3"])
    decisions = decide(table, routes=[route("n", "CAST(kind AS INT) > 0")])
    assert taken(decisions) == [(0, "n"), (2, "n")]
    assert failures(decisions) == [(1, "", "expression_error")]


def test_a_policy_that_can_not_be_judged_lets_nothing_pass() -> None:
    table = rows(["a", "b"], kind=["1", "two"])
    decisions = decide(table, policy__reject=[reject("low", "CAST(kind AS INT) < 0")])
    assert taken(decisions) == [(0, "ask")]
    assert failures(decisions) == [(1, "", "expression_error")]


def test_rules_that_do_not_parse_are_named_by_key() -> None:
    for where, changes in [
        ("input.filter", {"input__filter": "size >"}),
        ("routes[0].when", {"routes": [route("a", "size >")]}),
        ("policy.reject[1].when", {"policy__reject": [reject("a", "TRUE"), reject("b", "size >")]}),
    ]:
        with pytest.raises(ExpressionError) as caught:
            compile_rules(workload(**changes))
        assert caught.value.problem.where == where


@given(st.permutations(range(12)), st.integers(1, 5))
def test_a_row_is_routed_the_same_way_whatever_its_neighbours_are(order: list[int], size: int) -> None:
    split = [{"weight": 1, "backends": ["mini"]}, {"weight": 2, "backends": ["other"]}]
    changes = {"routes": [route("odd", "size % 2 = 1", split=split), route("rest", "size > 3")]}
    table = rows([f"d{n}" for n in range(12)])
    whole = {a.document_id: (a.route, a.rule, a.chain) for _, a in decide(table, **changes).todo}
    for start in range(0, 12, size):
        part = table.take(pa.array(order[start : start + size]))
        for _, a in decide(part, **changes).todo:
            assert whole[a.document_id] == (a.route, a.rule, a.chain)


# ---- splits


def arms(*weights: int) -> Workload:
    split = [
        {"weight": w, "backends": [name]} for w, name in zip(weights, ("mini", "other", "mini"), strict=False)
    ]
    return workload(backends__other=HOSTED, routes=[route("ask", split=split)])


@pytest.mark.parametrize("weights", [(1, 1), (9, 1), (1, 999_999), (5, 3, 2)])
def test_each_arm_gets_its_share_of_the_ids(weights: tuple[int, ...]) -> None:
    chosen = arms(*weights).routes[0]
    count, total = 20_000, sum(weights)
    labels = Counter(choose_arm(chosen, f"document-{n}")[1] for n in range(count))
    for index, weight in enumerate(weights):
        share = weight / total
        allowed = 4 * (count * share * (1 - share)) ** 0.5 + 1  # four standard deviations
        assert abs(labels[f" [split {index + 1} of {len(weights)}]"] - count * share) <= allowed


def test_which_arm_an_id_takes_is_frozen() -> None:
    """If this fails, documents of running canaries change sides."""
    chosen = arms(1, 1).routes[0]
    assert "".join(choose_arm(chosen, f"d{n}")[1].split()[1] for n in range(12)) == "121112111222"


def test_widening_a_canary_moves_documents_into_it_only() -> None:
    narrow, wide = arms(1, 9).routes[0], arms(3, 7).routes[0]
    before = {n for n in range(2000) if "[split 1" in choose_arm(narrow, f"d{n}")[1]}
    after = {n for n in range(2000) if "[split 1" in choose_arm(wide, f"d{n}")[1]}
    assert before < after


def test_the_rule_names_the_arm_and_a_plain_chain_has_none() -> None:
    split = [{"weight": 1, "backends": ["mini"]}, {"weight": 1, "backends": ["other"]}]
    (_, assignment), *_ = decide(KINDS, routes=[route("ask", "size >= 0", split=split)]).todo
    arm = assignment.rule.removeprefix("size >= 0")
    assert (arm, assignment.chain) in [(" [split 1 of 2]", ("mini",)), (" [split 2 of 2]", ("other",))]
    assert choose_arm(workload().routes[0], "x")[1] == ""


# ---- further attempts


def test_only_the_pairs_of_a_further_attempt_are_kept() -> None:
    table = rows(["a", "b", None], kind=["x", "y", "z"])
    decisions = decide(table, routes=ROUTES, match="all")
    kept = only_pairs(decisions, [(100, "big"), (102, ""), (999, "xs")])
    assert taken(kept) == [(0, "big")]
    assert failures(kept) == [(2, "", "null_id")]
    assert [type(o) for o in kept.done] == [Outcome]
