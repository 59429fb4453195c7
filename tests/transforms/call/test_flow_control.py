"""The production core in virtual time against limits, outages, hangs and neighbours."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from schemas.failures import FailureClass
from schemas.limits import Limits
from schemas.outcomes import Outcome
from schemas.routes import Prompt, Route
from tests.transforms.call.fakes import (
    HAIKU,
    MINI,
    FakeTransport,
    Sent,
    answer_for,
    anthropic_answer,
    error,
    make_batch,
    make_core,
    make_request,
    make_workload,
    openai_answer,
    run_batch,
    run_virtual,
)
from transforms.call.breaker import CALLS_TO_OPEN, PATIENCE_S
from transforms.call.ports import NotSentError
from transforms.call.request import CallBatch, CallBatchResult
from transforms.call.wire import WireResponse

F = FailureClass
LIMITED = error(429, "rate_limit_error")


def timed(transport: FakeTransport, batch: CallBatch, **core: Any) -> tuple[CallBatchResult, float]:
    """A batch through a core of its own, and how long it took."""

    async def main() -> tuple[CallBatchResult, float]:
        result = await make_core(transport, **core).run(batch)
        return result, asyncio.get_running_loop().time()

    return run_virtual(main())


class Fast(FakeTransport):
    """A provider whose script sees no history: for thousands of calls."""

    async def send(self, request: Any, key: Any, timeout_s: float) -> WireResponse:
        loop = asyncio.get_running_loop()
        reply: Any = self.script(Sent(loop.time(), "", "claude", None, {}), 0)
        self.sent.append(Sent(loop.time(), "", "claude", None, {}))
        if reply == "hang":
            await asyncio.sleep(timeout_s)
            raise TimeoutError
        await asyncio.sleep(0.002 if reply.status == 429 else self.latency_s)
        return reply


def bucket(rate: float) -> Any:
    """Lets through `rate` calls a second, a quarter of a second's worth at once."""
    state = {"tokens": rate / 4, "at": 0.0}

    def script(sent: Sent, seen: int) -> WireResponse:
        state["tokens"] = min(rate / 4, state["tokens"] + (sent.at - state["at"]) * rate)
        state["at"] = sent.at
        if state["tokens"] < 1:
            return LIMITED
        state["tokens"] -= 1
        return anthropic_answer("fine")

    return script


def test_a_rate_limit_fails_no_row_is_used_to_95_percent_and_not_stormed() -> None:
    transport = Fast(bucket(200))
    result, took = timed(transport, make_batch(4000))
    assert all(outcome.is_result for outcome in result.outcomes)
    assert 4000 / took >= 0.95 * 200
    assert len(transport.sent) <= 1.05 * 4000


def test_a_document_that_is_only_ever_rate_limited_ends_at_its_deadline_and_not_before() -> None:
    result, transport = run_batch(
        lambda sent, seen: LIMITED, workload=make_workload(limits=Limits(max_calls=2))
    )
    assert result.outcomes[0].failure is F.DEADLINE
    assert "rate_limit_error happened" in result.outcomes[0].message
    assert transport.sent[-1].at > 300
    assert 10 < len(transport.sent) < 100


def test_a_document_with_somewhere_else_to_go_leaves_a_limited_backend_after_its_calls() -> None:
    def script(sent: Sent, seen: int) -> WireResponse:
        return LIMITED if sent.model.startswith("claude") else openai_answer("from mini")

    workload = make_workload(limits=Limits(max_calls=3))
    result, transport = run_batch(script, make_batch(1, ("haiku", "mini")), workload=workload)
    assert result.outcomes[0].backend == "mini"
    assert len(transport.sent) == 4


def noisy(source: random.Random, retry_after: str) -> Any:
    """One call in twenty is refused, whatever the rate."""

    def script(sent: Sent, seen: int) -> WireResponse:
        limited = source.random() < 0.05
        return (
            error(429, "rate_limit_error", retry_after=retry_after) if limited else anthropic_answer("fine")
        )

    return script


def test_short_waits_that_are_not_meant_cost_the_lane_no_more_than_finding_out() -> None:
    transport = Fast(noisy(random.Random(3), "1"))
    result, took = timed(transport, make_batch(4000))
    assert all(outcome.is_result for outcome in result.outcomes)
    assert took < 10  # more than a minute when every one of them is kept


def test_long_waits_are_kept_by_the_whole_lane_however_much_gets_through() -> None:
    transport = Fast(noisy(random.Random(3), "3"))
    told = [-100.0]
    script = transport.script

    def telling(sent: Sent, seen: int) -> WireResponse:
        # what left in the moment in which the refusal was under way could not know of it
        assert not told[-1] + 0.003 < sent.at < told[-1] + 3.0
        reply: Any = script(sent, seen)
        if reply.status == 429:
            told.append(sent.at)
        return reply

    transport.script = telling
    result, _ = timed(transport, make_batch(500))
    assert all(outcome.is_result for outcome in result.outcomes)
    assert len(told) > 10


def test_a_lane_that_gets_nothing_through_waits_as_long_as_it_was_told() -> None:
    def script(sent: Sent, seen: int) -> WireResponse:
        return error(429, "rate_limit_error", retry_after="20") if sent.at < 20 else anthropic_answer("fine")

    transport = Fast(script)
    result, took = timed(transport, make_batch(100))
    assert all(outcome.is_result for outcome in result.outcomes)
    assert len([sent for sent in transport.sent if 0.01 < sent.at < 20]) == 0
    assert took < 30


def test_limits_that_answers_state_are_kept_without_a_single_429() -> None:
    state = {"level": 60.0, "at": 0.0}

    def script(sent: Sent, seen: int) -> WireResponse:
        state["level"] = min(60.0, state["level"] + (sent.at - state["at"]))
        state["at"] = sent.at
        if state["level"] < 1:
            return LIMITED
        state["level"] -= 1
        missing = 60 - state["level"]
        headers = {
            "anthropic-ratelimit-requests-limit": "60",
            "anthropic-ratelimit-requests-remaining": str(int(state["level"])),
            "anthropic-ratelimit-requests-reset": f"2026-11-22T09:{int(sent.at + missing) // 60:02d}:"
            f"{int(sent.at + missing) % 60:02d}Z",
        }
        return replace(anthropic_answer("fine"), headers=headers)

    transport = Fast(script)
    result, took = timed(transport, make_batch(300))
    assert [outcome.calls for outcome in result.outcomes] == [1] * 300
    assert took <= 240 / 0.95 + 5  # 60 at once, then one a second


def outage(until: float) -> Any:
    def script(sent: Sent, seen: int) -> WireResponse:
        return error(503, "overloaded_error") if sent.at < until else answer_for(sent)

    return script


def test_a_provider_that_is_down_gets_a_few_probes_instead_of_every_call_of_every_document() -> None:
    transport = FakeTransport(outage(1e9))
    result, took = timed(transport, make_batch(1500))
    assert {outcome.failure for outcome in result.outcomes} == {F.OVERLOADED}
    assert "counts as down" in result.outcomes[-1].message
    assert len(transport.sent) <= 32 + CALLS_TO_OPEN + 20
    assert took > PATIENCE_S + 1000 / 50  # nor is the rest of the run thrown away within a second


def test_an_outage_that_is_over_in_time_fails_no_document() -> None:
    transport = FakeTransport(outage(5.0))
    result, _ = timed(transport, make_batch(500))
    assert all(outcome.is_result for outcome in result.outcomes)
    during = [sent for sent in transport.sent if 1.0 < sent.at < 5.0]
    assert len(during) <= 3


def test_a_document_with_another_backend_goes_there_at_once_while_one_is_down() -> None:
    def script(sent: Sent, seen: int) -> Any:
        return NotSentError("refused") if sent.model.startswith("claude") else openai_answer("from mini")

    transport = FakeTransport(script)
    result, took = timed(transport, make_batch(400, ("haiku", "mini")))
    assert {outcome.backend for outcome in result.outcomes} == {"mini"}
    calls = Counter(sent.model for sent in transport.sent)
    assert calls["claude-haiku-4-5"] <= 32 + CALLS_TO_OPEN
    assert calls["gpt-4.1-mini"] == 400
    assert took < 3


def test_calls_that_hang_stop_nobody_else() -> None:
    async def script(sent: Sent, seen: int) -> WireResponse:
        if int(sent.prompt[4:]) % 100 == 7 and not seen:
            await asyncio.sleep(1e6)
        return answer_for(sent)

    transport = FakeTransport(script)

    async def main() -> float:
        core = make_core(transport)
        task = asyncio.create_task(core.run(make_batch(1000)))
        await asyncio.sleep(3)
        answered = core.desk.counters.answered
        result = await task
        assert all(outcome.is_result for outcome in result.outcomes)
        return answered

    assert run_virtual(main()) == 990


def routed(rows: range, route: str, batch_id: str) -> CallBatch:
    requests = []
    for row in rows:
        request = make_request(row)
        requests.append(replace(request, assignment=replace(request.assignment, route=route)))
    return CallBatch(batch_id, 1, tuple(requests))


def two_routes(share: int) -> Any:
    routes = (
        Route(name="a", backends=("haiku",), prompt="p", share=share),
        Route(name="b", backends=("haiku",), prompt="p"),
    )
    slow = {"haiku": HAIKU.model_copy(update={"max_in_flight": 4}), "mini": MINI}
    return make_workload(slow).model_copy(update={"routes": routes, "prompts": {"p": Prompt(template="x")}})


@pytest.mark.parametrize(("share", "least", "most"), [(1, 45, 55), (3, 70, 80)])
def test_routes_that_wait_for_the_same_model_share_it_by_weight(share: int, least: int, most: int) -> None:
    transport = FakeTransport(lambda sent, seen: answer_for(sent))

    async def main() -> None:
        core = make_core(transport, workload=two_routes(share))
        first = asyncio.create_task(core.run(routed(range(150), "a", "b1")))
        await asyncio.sleep(0)
        await core.run(routed(range(1000, 1150), "b", "b2"))
        await first

    run_virtual(main())
    of_a = sum(int(sent.prompt[4:]) < 1000 for sent in transport.sent[8:108])
    assert least <= of_a <= most


def test_a_route_alone_has_the_whole_lane_whatever_its_share() -> None:
    transport = FakeTransport(lambda sent, seen: answer_for(sent))

    async def main() -> float:
        await make_core(transport, workload=two_routes(1)).run(routed(range(100), "b", "b1"))
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(100 / 4 * 0.05, rel=0.05)


def test_cancelling_settles_what_is_in_flight_although_a_lane_is_paced() -> None:
    transport = Fast(bucket(50))

    async def main() -> list[Outcome] | BaseException:
        core = make_core(transport)
        batch = asyncio.create_task(core.run(make_batch(1000)))
        await asyncio.sleep(3)
        before = len(transport.sent)
        await core.close(grace_s=10)
        assert len(transport.sent) == before
        assert core.desk.counters.in_flight == 0
        error = batch.exception()
        assert error is not None
        return error

    assert "cancelled" in str(run_virtual(main()))
