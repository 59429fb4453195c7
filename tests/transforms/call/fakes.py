"""Stand-ins for what the call engine's core needs from outside: virtual time, a scripted provider, memory."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import unquote

import orjson

from schemas.backends import HostedBackend
from schemas.budget import Budget
from schemas.errors import BatchClaimedError, LedgerError
from schemas.limits import Limits
from schemas.outcomes import Assignment
from schemas.routes import Prompt, Route
from schemas.workload import Input, Output, Workload
from transforms.call.budget import Budget as CallBudget
from transforms.call.budget import NoCap
from transforms.call.codecs import base_url_of
from transforms.call.core import CallCore
from transforms.call.desk import Desk
from transforms.call.ledger import RecordedCall, fold, scan
from transforms.call.ports import Clock, LostError, Transport
from transforms.call.request import CallBatch, CallBatchResult, CallRequest
from transforms.call.retry import RetryPolicies
from transforms.call.secret import Secret
from transforms.call.site import build_sites, place_of
from transforms.call.slots import Slots
from transforms.call.structured import SchemaBook
from transforms.call.wire import WireRequest, WireResponse
from transforms.price import PriceBook

T = TypeVar("T")
EPOCH = datetime(2026, 11, 22, 9, tzinfo=UTC)
CANARY = "sk-canary-4f1d9b7e"
LABEL_SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["a", "b"]}},
    "required": ["label"],
    "additionalProperties": False,
}


class _JumpingSelector(selectors.SelectSelector):
    """Never waits: what the loop would wait for is added to its time."""

    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events:
            assert timeout is not None, "everything waits and nothing would ever wake it"
            self.loop.virtual_now += max(0.0, timeout)
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when nothing else is left to do."""

    def __init__(self) -> None:
        self.virtual_now = 0.0
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.virtual_now


class VirtualClock:
    """The loop's virtual time."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.monotonic())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Runs to the end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


@dataclass(frozen=True)
class Sent:
    """A request that reached the fake provider."""

    at: float
    prompt: str
    model: str
    key: str | None
    body: dict[str, Any]


Reply = WireResponse | Exception
Script = Callable[[Sent, int], Reply | Awaitable[Reply]]


class FakeTransport:
    """Answers by a script: (request, how often this prompt was seen before) to response or error."""

    def __init__(self, script: Script, latency_s: float = 0.05) -> None:
        self.script = script
        self.latency_s = latency_s
        self.sent: list[Sent] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.most_by_model: dict[str, int] = {}
        self._by_model: dict[str, int] = {}

    async def send(self, request: WireRequest, key: Secret | None, timeout_s: float) -> WireResponse:
        body = orjson.loads(request.body)
        sent = Sent(
            asyncio.get_running_loop().time(),
            _prompt_in(body),
            body.get("model") or unquote(request.url).rpartition("/models/")[2].partition(":")[0],
            key.reveal() if key else None,
            body,
        )
        seen = sum(1 for other in self.sent if other.prompt == sent.prompt)
        self.sent.append(sent)
        self._enter(sent.model, 1)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(self.latency_s)
                reply = self.script(sent, seen)
                if isinstance(reply, Awaitable):
                    reply = await reply
        except TimeoutError:
            raise LostError("timeout", "no whole answer in time") from None
        finally:
            self._enter(sent.model, -1)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _enter(self, model: str, step: int) -> None:
        self.in_flight += step
        self._by_model[model] = self._by_model.get(model, 0) + step
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.most_by_model[model] = max(self.most_by_model.get(model, 0), self._by_model[model])

    async def close(self) -> None:
        pass

    def prompts(self) -> list[str]:
        return [sent.prompt for sent in self.sent]


def _prompt_in(body: dict[str, Any]) -> str:
    """What a request of any provider asks last."""
    if "input" in body:
        return str(body["input"])
    if "content" in body:
        return str(body["content"]["parts"][0]["text"])
    if "contents" in body:
        return str(body["contents"][-1]["parts"][0]["text"])
    asked = body["messages"][-1]["content"]
    return asked if isinstance(asked, str) else "".join(block["text"] for block in asked)


class MemoryLog:
    """A ledger in memory; it refuses to write after `fails_after` appends."""

    def __init__(self, store: MemoryLedgers, batch_id: str) -> None:
        self._store = store
        self._batch_id = batch_id

    @property
    def content(self) -> bytes:
        return bytes(self._store.files[self._batch_id])

    def start(self, length: int) -> None:
        del self._store.files[self._batch_id][length:]

    def append(self, data: bytes) -> None:
        store = self._store
        if store.fails_after is not None and store.appended >= store.fails_after:
            raise LedgerError("the disk is full")
        store.appended += 1
        store.files[self._batch_id] += data

    async def sync(self) -> None:
        self._store.synced[self._batch_id] = len(self._store.files[self._batch_id])

    async def close(self) -> None:
        self._store.held.discard(self._batch_id)


@dataclass
class MemoryLedgers:
    """Ledgers in memory: what survives a killed process."""

    files: dict[str, bytearray] = field(default_factory=dict)
    synced: dict[str, int] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    fails_after: int | None = None
    appended: int = 0

    async def open(self, batch_id: str) -> MemoryLog:
        if batch_id in self.held:
            raise BatchClaimedError(f"batch {batch_id} is held")
        self.held.add(batch_id)
        self.files.setdefault(batch_id, bytearray())
        return MemoryLog(self, batch_id)

    def close(self) -> None:
        pass

    def calls(self, batch_id: str = "b1") -> list[RecordedCall]:
        """The calls that the ledger holds."""
        return list(fold(scan(bytes(self.files[batch_id]))[0], batch_id).calls.values())

    def after_a_crash(self) -> MemoryLedgers:
        """The same files, let go of by the process that died."""
        return MemoryLedgers({name: bytearray(data) for name, data in self.files.items()})


def anthropic_answer(text: str, stop_reason: str = "end_turn", **changes: Any) -> WireResponse:
    """A Messages response."""
    body = {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5-20251001",
        "content": [{"type": "text", "text": text}],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 20},
    }
    return WireResponse(200, {}, orjson.dumps({**body, **changes}))


def openai_answer(text: str | None, finish_reason: str = "stop", **changes: Any) -> WireResponse:
    """A chat completion."""
    message = {"role": "assistant", "content": text, "refusal": None}
    body = {
        "id": "chatcmpl-01",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4.1-mini-2025-04-14",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    return WireResponse(200, {}, orjson.dumps({**body, **changes}))


def gemini_answer(text: str | None, finish_reason: str = "STOP", **changes: Any) -> WireResponse:
    """A GenerateContentResponse."""
    parts = [] if text is None else [{"text": text}]
    body = {
        "candidates": [
            {"content": {"role": "model", "parts": parts}, "finishReason": finish_reason, "index": 0}
        ],
        "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 20, "totalTokenCount": 120},
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r-01",
    }
    return WireResponse(200, {}, orjson.dumps({**body, **changes}))


def error(status: int, kind: str, code: str | None = None, **headers: str) -> WireResponse:
    """An error response that both codecs read."""
    body = {"type": "error", "error": {"type": kind, "message": f"{kind} happened", "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return WireResponse(status, named, orjson.dumps(body))


def answer_for(sent: Sent, text: str = "fine") -> WireResponse:
    """A good answer in the format of whom the request went to."""
    return anthropic_answer(text) if sent.model.startswith("claude") else openai_answer(text)


FLASH = HostedBackend(provider="gemini", model="gemini-2.5-flash")
HAIKU = HostedBackend(provider="anthropic", model="claude-haiku-4-5")
MINI = HostedBackend(provider="openai", model="gpt-4.1-mini")


def make_workload(
    backends: dict[str, HostedBackend] | None = None,
    limits: Limits | None = None,
    budget: Budget | None = None,
    **changes: Any,
) -> Workload:
    """A workload with the backends `haiku` and `mini`."""
    backends = backends or {"haiku": HAIKU, "mini": MINI}
    return Workload(
        name="w",
        input=Input(uri="in", id="id", text="text"),
        routes=(Route(name="r", backends=tuple(backends), prompt="p"),),
        backends=backends,
        prompts={"p": Prompt(template="{{ text }}")},
        output=Output(uri="out"),
        limits=limits or Limits(),
        budget=budget or Budget(),
        **changes,
    )


def make_request(row: int, chain: tuple[str, ...] = ("haiku",), **changes: Any) -> CallRequest:
    """A request for row `row`, whose prompt is `row-<row>`."""
    values: dict[str, Any] = {
        "assignment": Assignment(row=row, route="r", rule="TRUE", chain=chain, document_id=f"d{row}"),
        "system": "be brief",
        "prompt": f"row-{row}",
        "json_schema": None,
        "document_sha256": "d" * 64,
        "prompt_sha256": "p" * 64,
    }
    return CallRequest(**{**values, **changes})


def make_batch(
    rows: int = 1, chain: tuple[str, ...] = ("haiku",), batch_id: str = "b1", attempt: int = 1, **changes: Any
) -> CallBatch:
    """A batch of `rows` requests."""
    return CallBatch(batch_id, attempt, tuple(make_request(row, chain, **changes) for row in range(rows)))


def make_core(
    transport: Transport,
    ledgers: MemoryLedgers | None = None,
    workload: Workload | None = None,
    *,
    max_in_flight: int = 256,
    budget: CallBudget | None = None,
    capped: bool = False,
    mode: str = "live",
    clock: Clock | None = None,
) -> CallCore:
    """The production core with everything around it replaced; no jitter."""
    workload = workload or make_workload()
    clock = clock or VirtualClock()
    backends = workload.hosted_backends()
    places = {name: place_of(name, base_url_of(b), Secret(CANARY)) for name, b in backends.items()}
    desk = Desk(
        sites=build_sites(backends, places, clock, PriceBook(), mode == "rehearsal", workload.shares()),
        clock=clock,
        transport=transport,
        budget=budget or NoCap(),
        limits=workload.limits,
        policies=RetryPolicies(workload.limits, lambda low, high: high),
        slots=Slots(max_in_flight),
        schemas=SchemaBook(),
        refuse_unknown_price=capped,
        allowed_providers=workload.policy.allowed_providers,
    )
    return CallCore(desk, ledgers or MemoryLedgers(), mode)


def run_batch(
    script: Script,
    batch: CallBatch | None = None,
    ledgers: MemoryLedgers | None = None,
    **core: Any,
) -> tuple[CallBatchResult, FakeTransport]:
    """One batch through a core of its own, in virtual time."""
    transport = FakeTransport(script)

    async def main() -> CallBatchResult:
        return await make_core(transport, ledgers, **core).run(batch or make_batch())

    return run_virtual(main()), transport


def with_parameters(backend: HostedBackend, **parameters: Any) -> HostedBackend:
    """The backend with generation parameters."""
    return backend.model_copy(update={"parameters": parameters})


def with_prompt(request: CallRequest, prompt: str) -> CallRequest:
    """The request with another prompt."""
    return replace(request, prompt=prompt)
