"""Prompt caching: what is marked, who goes first, and what it costs."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import orjson
import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from pydantic import TypeAdapter

from schemas.backends import HostedBackend, TokenPrice
from schemas.outcomes import Usage
from tests.transforms.call.fakes import (
    EPOCH,
    HAIKU,
    MINI,
    FakeTransport,
    MemoryLedgers,
    Sent,
    VirtualClock,
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
from transforms.call.caching import PrefixGate, by_shared_prefix, cached_prefix, least_cached_tokens
from transforms.call.codecs import codec_of
from transforms.call.ports import LostError
from transforms.call.request import CallBatch, CallRequest, Rejected
from transforms.call.wire import WireResponse, encode
from transforms.price import PriceBook

REQUEST = TypeAdapter(MessageCreateParamsNonStreaming)
SONNET = HostedBackend(provider="anthropic", model="claude-sonnet-4-5")
HEAD = "Classify by these rules. " * 200  # 5,000 characters
LONG = "You know the rules. " * 250
MARK = {"type": "ephemeral"}


def body_of(backend: HostedBackend, **changes: Any) -> tuple[dict[str, Any], str]:
    encoded = encode(codec_of(backend), backend, make_request(1, **changes), "https://a.example", "live")
    return orjson.loads(encoded.wire.body), encoded.sha256


def test_system_and_the_templates_head_are_marked_where_the_documents_differ() -> None:
    body, _ = body_of(SONNET, system=LONG, prompt=HEAD + "document 7", shared=len(HEAD))
    REQUEST.validate_python(body)
    head, rest = body["messages"][0]["content"]
    assert head == {"type": "text", "text": HEAD, "cache_control": MARK}
    assert rest == {"type": "text", "text": "document 7"}
    assert body["system"] == LONG  # the mark behind it covers it


def test_a_long_system_text_is_marked_by_itself_when_the_templates_begin_with_the_document() -> None:
    body, _ = body_of(SONNET, system=LONG, prompt="document 7", shared=0)
    REQUEST.validate_python(body)
    assert body["system"] == [{"type": "text", "text": LONG, "cache_control": MARK}]
    assert body["messages"] == [{"role": "user", "content": "document 7"}]


@pytest.mark.parametrize(
    ("backend", "changes"),
    [
        (SONNET, {"shared": None}),  # nobody shares it
        (SONNET.model_copy(update={"prompt_caching": "off"}), {}),
        (SONNET, {"system": "", "prompt": "short head, document", "shared": 12}),
        (SONNET, {"system": "", "prompt": HEAD, "shared": len(HEAD)}),  # blank blocks are refused
        (SONNET, {"system": "", "prompt": " " * 5000 + "x", "shared": 5000}),
        (HAIKU, {"system": "s" * 12_000, "shared": 0}),  # below this model's 4,096 tokens
        (MINI, {}),
        (HostedBackend(provider="gemini", model="gemini-2.5-flash"), {}),
    ],
)
def test_nothing_is_marked_where_it_would_not_pay(backend: HostedBackend, changes: dict[str, Any]) -> None:
    values = {"system": LONG, "prompt": HEAD + "document", "shared": len(HEAD), **changes}
    body, _ = body_of(backend, **values)
    assert b"cache_control" not in orjson.dumps(body)
    assert cached_prefix(backend, make_request(1, **values)) is None


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("claude-sonnet-4-5", 1024),
        ("claude-opus-4-1-20250805", 1024),
        ("claude-haiku-4-5@20251001", 4096),
        ("claude-opus-4-5", 4096),
        ("claude-3-5-haiku-latest", 2048),
        ("claude-of-tomorrow", 1024),
    ],
)
def test_each_model_has_its_least_length(model: str, tokens: int) -> None:
    assert least_cached_tokens(model) == tokens


def test_a_mark_is_no_part_of_the_question_so_switching_it_off_pays_nothing_again() -> None:
    values = {"system": LONG, "prompt": HEAD + "document", "shared": len(HEAD)}
    off = SONNET.model_copy(update={"prompt_caching": "off"})
    (marked, on_digest), (plain, off_digest) = body_of(SONNET, **values), body_of(off, **values)
    assert marked != plain
    assert on_digest == off_digest == body_of(SONNET, **{**values, "shared": None})[1]


def test_a_repair_reads_the_same_prefix() -> None:
    rejected = Rejected("bad", "answer again")
    body, _ = body_of(SONNET, prompt=HEAD + "document", shared=len(HEAD), rejected=rejected)
    REQUEST.validate_python(body)
    assert body["messages"][0]["content"][0]["cache_control"] == MARK
    assert [message["content"] for message in body["messages"][1:]] == ["bad", "answer again"]


def sharing_batch(rows: int, backend: str = "sonnet") -> CallBatch:
    return CallBatch(
        "b1",
        1,
        tuple(
            make_request(row, (backend,), system=LONG, prompt=f"{HEAD}row-{row}", shared=len(HEAD))
            for row in range(rows)
        ),
    )


def cached(written: int, read: int) -> WireResponse:
    usage = {
        "input_tokens": 10,
        "output_tokens": 20,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
    }
    return anthropic_answer("fine", usage=usage)


class Cache:
    """A provider with a cache: what is asked before the first answer has begun is written each time."""

    def __init__(self) -> None:
        self.filled_at: float | None = None

    async def __call__(self, sent: Sent, seen: int) -> WireResponse:
        hit = self.filled_at is not None and sent.at >= self.filled_at
        await asyncio.sleep(1)
        if self.filled_at is None:
            self.filled_at = asyncio.get_running_loop().time()
        return cached(0, 2000) if hit else cached(2000, 0)


WORKLOAD = make_workload({"sonnet": SONNET, "haiku": HAIKU, "mini": MINI})


def test_one_document_fills_the_cache_and_all_others_read_it() -> None:
    result, transport = run_batch(Cache(), sharing_batch(30), workload=WORKLOAD)
    usages = [outcome.usage for outcome in result.outcomes]
    assert [u.cache_creation_input_tokens for u in usages].count(2000) == 1
    assert [u.cache_read_input_tokens for u in usages].count(2000) == 29
    assert len({sent.at for sent in transport.sent}) == 2
    # 10 plain tokens at 3 USD, 20 of output at 15, 2000 written at 3.75 or read at 0.30 USD a million
    costs = sorted(outcome.charge.amount or 0 for outcome in result.outcomes)
    assert (costs[0], costs[-1]) == (Decimal("0.00093"), Decimal("0.00783"))


def test_without_a_shared_prefix_nobody_waits() -> None:
    transport = run_batch(Cache(), make_batch(30, ("sonnet",)), workload=WORKLOAD)[1]
    assert len({sent.at for sent in transport.sent}) == 1


@pytest.mark.parametrize("first", [error(529, "overloaded_error"), LostError("timeout", "late")])
def test_when_the_one_ahead_gets_no_answer_the_others_go_at_once(first: Any) -> None:
    def script(sent: Sent, seen: int) -> Any:
        return first if len(transport.sent) == 1 else cached(2000, 0)

    transport = FakeTransport(script)

    async def main() -> Any:
        return await make_core(transport, workload=WORKLOAD).run(sharing_batch(30))

    result = run_virtual(main())
    assert all(outcome.is_result for outcome in result.outcomes)
    assert sum(sent.at == transport.sent[1].at for sent in transport.sent) == 29


def test_every_worst_case_covers_writing_the_whole_prompt_to_the_cache() -> None:
    ledgers = MemoryLedgers()
    run_batch(Cache(), sharing_batch(2), ledgers, workload=WORKLOAD)
    for call in ledgers.calls():
        least = Decimal(len(LONG) + len(HEAD)) * Decimal("3.75") / 1_000_000
        assert call.worst is not None
        assert call.worst > least


def test_a_price_of_ones_own_knows_the_cache_when_it_is_told() -> None:
    own = TokenPrice(
        input_per_million=Decimal(3),
        output_per_million=Decimal(15),
        cache_read_per_million=Decimal("0.3"),
        cache_write_per_million=Decimal("3.75"),
    )
    plain = TokenPrice(input_per_million=Decimal(3), output_per_million=Decimal(15))
    usage = Usage(2010, 20, 1000, 1000)
    at = EPOCH
    book = PriceBook()
    assert book.price("anthropic", "m", usage, at, own=own).amount == Decimal("0.00438")
    assert book.price("anthropic", "m", usage, at, own=plain).amount == Decimal("0.00633")
    backend = HostedBackend(provider="anthropic", model="m", price=own)
    assert book.worst_case(backend, 1000, 100, at) == Decimal("0.00525")


def test_usage_of_providers_that_cache_by_themselves_is_read_and_priced() -> None:
    usage = {
        "prompt_tokens": 2000,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": 1500},
    }
    result, _ = run_batch(
        lambda sent, seen: openai_answer("fine", usage=usage), make_batch(1, ("mini",)), workload=WORKLOAD
    )
    outcome = result.outcomes[0]
    assert outcome.usage.cache_read_input_tokens == 1500
    # 500 tokens at 0.40 and 1500 at 0.10 USD a million
    assert outcome.charge.amount == Decimal("0.00035")


def test_the_gate_opens_again_when_the_entry_has_died() -> None:
    async def main() -> list[bool]:
        gate = PrefixGate(VirtualClock())
        seen = []
        for pause in (0, 1, 200, 200, 271):  # each answer keeps the entry alive
            await asyncio.sleep(pause)
            ahead = await gate.enter("p")
            gate.leave("p", ahead=ahead, answered=True)
            seen.append(ahead)
        return seen

    assert run_virtual(main()) == [True, False, False, False, True]


def test_a_cancelled_follower_leaves_the_gate_to_the_others() -> None:
    async def main() -> None:
        gate = PrefixGate(VirtualClock())
        assert await gate.enter("p")
        followers = [asyncio.create_task(gate.enter("p")) for _ in range(3)]
        await asyncio.sleep(0)
        followers[0].cancel()
        await asyncio.sleep(0)
        gate.leave("p", ahead=True, answered=True)
        assert await asyncio.gather(*followers[1:]) == [False, False]

    run_virtual(main())


def test_requests_that_begin_alike_are_sent_next_to_each_other_and_others_as_they_came() -> None:
    def request(row: int, prompt: str) -> tuple[int, CallRequest]:
        return row, make_request(row, prompt=prompt)

    shared = [HEAD + "1", "x", LONG + "2", "y", HEAD + "3", LONG + "4", "z"]
    ordered = by_shared_prefix(request(row, prompt) for row, prompt in enumerate(shared))
    assert [row for row, _ in ordered] == [0, 4, 1, 2, 5, 3, 6]
