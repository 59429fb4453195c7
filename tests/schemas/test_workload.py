from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.workload import Workload
from tests.support.workloads import EMBEDDER, TOPIC_SCHEMA, data, workload

ROUTE = {"name": "ask", "backends": ["mini"], "prompt": "topic"}
BASE: dict[str, Any] = {
    "backends__emb": EMBEDDER,
    "prompts__topic__json_schema": TOPIC_SCHEMA,
    "policy__reject": [{"name": "secret", "when": "kind = 'secret'", "reason": "no"}],
}


def digest(**changes: Any) -> str:
    return workload(**{**BASE, **changes}).digest()


def test_the_digest_is_frozen() -> None:
    """If this fails, every output written so far refuses its own workload: say so in the changelog."""
    assert digest() == "c8022a366260b7feea5b17033e3980dfae091b9a37968104a5452fb280086adb"


@pytest.mark.parametrize(
    "changes",
    [
        {"budget__amount": "5"},
        {"budget__on_unknown_price": "allow"},
        {"input__uri": "elsewhere"},
        {"input__unreadable_files": "skip"},
        {"output__uri": "elsewhere"},
        {"output__compression": "snappy"},
        {"limits__max_in_flight": 5},
        {"limits__request_timeout_s": 5},
        {"limits__groups": 7},
        {"limits__parallel_groups": 2},
        {"rehearsal__seed": 7},
        {"rehearsal__faults": {"hang": 0.5}},
        {"backends__mini__price": {"input_per_million": "2", "output_per_million": "2"}},
        {"backends__mini__max_in_flight": 3},
        {"backends__mini__api_key_env": "OTHER_KEY"},
        {"backends__mini__prompt_caching": "off"},
        {"backends__emb__price_per_device_hour": "1"},
        {"backends__emb__device_watts": [10, 20]},
        {"backends__emb__tensor_parallel": 4},
        {"backends__emb__step_tokens": 4096},
    ],
)
def test_money_time_concurrency_and_addresses_are_the_same_workload(changes: dict[str, Any]) -> None:
    assert digest(**changes) == digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"match": "all"},
        {"input__id": "kind"},
        {"input__text": "kind"},
        {"input__columns": ["kind"]},
        {"input__filter": "size > 1"},
        {"input__unique_ids": "batch"},
        {"input__max_text_chars": 10},
        {"routes": [{**ROUTE, "when": "size > 1"}]},
        {"routes": [{**ROUTE, "name": "other"}]},
        {"routes": [{**ROUTE, "backends": ["mini", "mini"]}]},
        {"prompts__topic__template": "Other: {{ text }}"},
        {"prompts__topic__system": "Be brief."},
        {"prompts__topic__json_schema": {**TOPIC_SCHEMA, "required": []}},
        {"prompts__topic__repair": False},
        {"backends__mini__send_dimensions": False},
        {"backends__mini__model": "gpt-5"},
        {"backends__mini__base_url": "https://example.org/v1"},
        {"backends__mini__max_output_tokens": 5},
        {"backends__mini__parameters": {"temperature": 0.5}},
        {"backends__emb__output_dtype": "float16"},
        {"backends__emb__pooling": "cls"},
        {"policy__reject": []},
        {"policy__allowed_providers": {"ask": ["openai"]}},
        {"output__columns": ["kind"]},
        {"limits__batch_rows": 10},
        {"limits__batch_bytes": 4096},
    ],
)
def test_what_decides_the_answers_or_the_batches_is_another_workload(changes: dict[str, Any]) -> None:
    assert digest(**changes) != digest()


def test_the_digest_does_not_depend_on_the_order_of_tables() -> None:
    values = data(**BASE)
    turned = {key: values[key] for key in reversed(values)}
    turned["backends"] = {key: values["backends"][key] for key in reversed(values["backends"])}
    assert Workload.model_validate(turned).digest() == digest()


def test_the_order_of_routes_is_part_of_the_workload() -> None:
    routes = [{**ROUTE, "name": "a"}, {**ROUTE, "name": "b"}]
    assert digest(routes=routes) != digest(routes=routes[::-1])


def test_a_loaded_workload_can_not_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        workload().limits.batch_rows = 5  # type: ignore[misc]


def test_amounts_are_decimals_without_the_digits_of_a_float() -> None:
    assert workload(budget__amount=0.1).budget.amount == Decimal("0.1")


@pytest.mark.parametrize("amount", ["nan", "inf", "1e30", "0.0000000000001"])
def test_an_amount_that_money_can_not_hold_is_refused(amount: str) -> None:
    with pytest.raises(ValidationError):
        workload(budget__amount=amount)


def test_every_column_is_read_once_id_and_text_first() -> None:
    needed = workload(input__columns=["size", "text", "kind", "id"]).input.needed_columns
    assert needed == ("id", "text", "size", "kind")


def test_a_plain_chain_is_a_split_with_one_arm() -> None:
    (arm,) = workload(routes=[{**ROUTE, "backends": ["mini", "mini"]}]).routes[0].chains
    assert arm.backends == ("mini", "mini")


def test_routes_and_backends_are_found_by_kind() -> None:
    routes = [ROUTE, {"name": "vec", "backends": ["emb"]}]
    found = workload(**BASE, routes=routes)
    assert list(found.hosted_backends()) == ["mini"]
    assert list(found.embedder_backends()) == ["emb"]
    assert [found.is_embed_route(r) for r in found.routes] == [False, True]
    assert found.route("vec").backends == ("emb",)
    with pytest.raises(KeyError):
        found.route("none")


GEMINI = {"provider": "gemini", "model": "gemini-2.5-flash"}
VERTEX = {**GEMINI, "platform": "vertex", "project": "p-1", "location": "europe-west1"}
VECTORS = {"provider": "openai", "model": "m", "operation": "embeddings", "dimensions": 8}


def test_a_project_is_whose_bill_it_is_and_a_location_where_the_documents_go() -> None:
    base = digest(backends__mini=VERTEX)
    assert digest(backends__mini={**VERTEX, "project": "p-2"}) == base
    assert digest(backends__mini={**VERTEX, "location": "us-central1"}) != base
    assert digest(backends__mini=GEMINI) != base


def test_hosted_vectors_are_an_embed_route_that_is_not_local() -> None:
    routes = [ROUTE, {"name": "vec", "backends": ["emb"]}, {"name": "far", "backends": ["far"]}]
    found = workload(**BASE, backends__far=VECTORS, routes=routes)
    assert [found.is_embed_route(r) for r in found.routes] == [False, True, True]
    assert [found.is_local_route(r) for r in found.routes] == [False, True, False]
    backends = [found.hosted_embeddings(r) for r in found.routes]
    assert [b.dimensions if b else None for b in backends] == [None, None, 8]


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ({**GEMINI, "project": "p-1"}, 'are for platform = "vertex"'),
        ({**GEMINI, "location": "global"}, 'are for platform = "vertex"'),
        ({**GEMINI, "platform": "vertex"}, "needs `project` and `location`"),
        ({**VERTEX, "location": None}, "needs `project` and `location`"),
        ({**VERTEX, "provider": "openai"}, "is for the providers gemini and anthropic"),
        ({**VERTEX, "api_key_env": "KEY"}, "remove `api_key_env`"),
        ({**VERTEX, "project": "../x"}, "pattern"),
        ({**VERTEX, "location": "Europe"}, "pattern"),
        ({**GEMINI, "dimensions": 8}, 'is for operation = "embeddings"'),
        ({**VECTORS, "dimensions": None}, "need `dimensions`"),
        ({**VECTORS, "provider": "anthropic"}, "anthropic has no embeddings"),
        ({**VERTEX, "operation": "embeddings", "dimensions": 8}, "not supported"),
    ],
)
def test_what_a_platform_or_an_operation_needs_is_said(backend: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        workload(backends__mini=backend)
