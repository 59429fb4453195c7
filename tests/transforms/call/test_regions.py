"""Ten thousand documents with a region, under random rules and outages: none is sent where it must not be."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import orjson
import pyarrow as pa
import pytest

from schemas.backends import HostedBackend
from schemas.limits import Limits
from schemas.outcomes import Outcome
from schemas.routes import Prompt, Rejection, Route
from schemas.workload import Workload
from tests.support.documents import rows
from tests.transforms.call.fakes import (
    anthropic_answer,
    error,
    make_core,
    make_request,
    make_workload,
    openai_answer,
    run_virtual,
)
from transforms.call.ports import LostError, NotSentError
from transforms.call.request import CallBatch
from transforms.call.secret import Secret
from transforms.call.wire import WireRequest, WireResponse
from transforms.intake import inspect_rows
from transforms.probe_rows import read_table_as
from transforms.route import Decisions, choose_routes, compile_rules

TAGS = ("eu", "us", "ch", "EU", " eu", "eu'--", "", None)
REGIONS = ("eu", "us", "ch")
BACKENDS = tuple(f"{region}_{number}" for region in REGIONS for number in (1, 2))
OUTAGES = ("up", "up", "up", "500", "529", "401", "429", "429 long", "reset", "hang", "not sent", "sometimes")
ROWS = 400


class Providers:
    """Every backend is up or in its own trouble; notes which document came to which."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.state = {name: source.choice(OUTAGES) for name in BACKENDS}
        self.seen: list[tuple[int, str]] = []

    async def send(self, request: WireRequest, key: Secret | None, timeout_s: float) -> WireResponse:
        body = orjson.loads(request.body)
        content = body["messages"][-1]["content"]
        prompt = content if isinstance(content, str) else content[0]["text"]
        self.seen.append((int(prompt.removeprefix("row-")), body["model"]))
        state = self.state[body["model"]]
        if state == "sometimes":
            state = self.source.choice(OUTAGES[:-1])
        await asyncio.sleep(timeout_s if state == "hang" else 0.05)
        if state in ("reset", "hang"):
            raise LostError("timeout" if state == "hang" else "connection", "gone")
        if state == "not sent":
            raise NotSentError("refused")
        if state != "up":
            waits = {"retry_after": "300"} if state == "429 long" else {}
            return error(int(state[:3]), "authentication_error" if state == "401" else "api_error", **waits)
        return anthropic_answer("fine") if "anthropic" in request.url else openai_answer("fine")

    async def close(self) -> None:
        pass


def draw_workload(source: random.Random) -> Workload:
    """A route for each region, through its own backends; rules that keep some documents at home."""
    backends = {
        name: HostedBackend(provider=source.choice(("openai", "anthropic")), model=name) for name in BACKENDS
    }
    routes = tuple(
        Route(
            name=region,
            when=f"kind = '{region}'",
            backends=tuple(source.sample([f"{region}_1", f"{region}_2"], source.choice((1, 2)))),
            prompt="p",
        )
        for region in source.sample(REGIONS, source.choice((2, 3)))
    )
    rule = Rejection(
        name="stays",
        when=f"size % 5 = {source.randrange(5)}",
        reason="it stays here",
        routes=tuple(source.sample([route.name for route in routes], source.choice((0, 1)))),
    )
    workload = make_workload(
        backends, limits=Limits(max_calls=2, request_timeout_s=2, document_deadline_s=60)
    )
    policy = workload.policy.model_copy(update={"reject": (rule,)})
    values = {"routes": routes, "prompts": {"p": Prompt(template="x")}, "policy": policy}
    return workload.model_copy(update=values)


def may_see(workload: Workload, tag: Any, size: int) -> frozenset[str]:
    """The backends that a document may be sent to, by plain comparisons."""
    for route in workload.routes:
        (rule,) = workload.policy.reject
        stays = size % 5 == int(rule.when.rpartition(" ")[2]) and route.name in (rule.routes or (route.name,))
        if tag == route.name and not stays:
            return frozenset(route.backends)
    return frozenset()


def decide(workload: Workload, table: pa.Table) -> Decisions:
    rules = compile_rules(workload)
    fields = [pa.field(f.name, pa.large_string()) if f.type == pa.string() else f for f in table.schema]
    intake = inspect_rows(read_table_as(table, pa.schema(fields)), workload.input, None, ())
    return choose_routes(rules, intake, 0)


@pytest.mark.parametrize("block", range(2))
def test_a_document_is_seen_by_backends_of_its_own_region_alone(block: int) -> None:
    happened: Counter[str] = Counter()
    for seed in range(13 * block, 13 * block + 13):
        source = random.Random(seed)
        workload, providers = draw_workload(source), Providers(source)
        tags = [source.choice(TAGS) for _ in range(ROWS)]
        decisions = decide(workload, rows(range(ROWS), kind=tags))
        requests = tuple(make_request(a.row, assignment=a) for _, a in decisions.todo)
        outcomes = run_virtual(_call(providers, workload, CallBatch("b", 1, requests)))
        for row, model in providers.seen:
            assert model in may_see(workload, tags[row], row), (
                f"seed {seed}: {tags[row]!r} was sent to {model}"
            )
        for outcome in outcomes:
            row = outcome.assignment.row
            assert set(outcome.chain_tried) <= may_see(workload, tags[row], row)
        sent = {row for row, _ in providers.seen}
        assert not sent & {outcome.assignment.row for outcome in decisions.done}
        happened["cases"] += ROWS
        happened["rejected"] += sum(o.failure == "policy_rejected" for o in decisions.done)
        happened["fell back"] += sum(len(o.chain_tried) > 1 and o.is_result for o in outcomes)
        happened["failed"] += sum(not o.is_result for o in outcomes)
    assert happened["cases"] >= 5000
    assert min(happened["rejected"], happened["fell back"], happened["failed"]) > 20, happened


async def _call(providers: Providers, workload: Workload, batch: CallBatch) -> list[Outcome]:
    return (await make_core(providers, workload=workload).run(batch)).outcomes
