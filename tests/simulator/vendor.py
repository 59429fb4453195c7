"""The vendor: it works, charges when the work is done, keeps its own bill, and is not always well."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Any

import orjson

from tests.simulator.shape import PROVIDERS, Shape
from tests.simulator.world import Process, World
from transforms.call.wire import WireRequest, WireResponse

INPUT_PRICE, OUTPUT_PRICE = 3, 15
"""Millionths of a dollar a token."""
GOOD = "answer"
PAID_BUT_BAD = ("refused", "cut off", "no json", "no match", "empty")
UNFIT = ("no json", "no match")
PAID_AND_LOST = ("lost", "broken body", "garbled", "late")
FREE = ("429", "429 wait", "500", "529", "reset", "hang", "not sent")
RARE = ("400", "429 long", "401")
FAULTS = (*PAID_BUT_BAD, *PAID_AND_LOST, *FREE, *RARE)


@dataclass(eq=False, slots=True)
class Entry:
    """One request in the vendor's journal."""

    number: int
    process: Process
    text: str  # what the document says
    backend: str
    body: bytes
    sent_at: float
    kind: str
    cost: Decimal  # what the work costs; on the bill once it is done
    usage: tuple[int, int] = (0, 0)
    answer: str = ""  # no two are the same
    ends_at: float = 0.0
    charged: bool = False
    batch: str = ""  # of the row that it is recorded for, as the row is, and its call in the ledger
    row: int = -1
    call_id: int | None = None
    intended_at: str = ""
    is_repair: bool = False  # an answer that did not fit came back
    lost: bool = False  # a power cut took it out of the ledger

    @property
    def is_paid(self) -> bool:
        return self.kind == GOOD or self.kind in PAID_BUT_BAD or self.kind in PAID_AND_LOST

    @property
    def who(self) -> str:
        row = f"{self.text!r} for row {self.row} of {self.batch[:6]}"
        return f"{row} at {self.backend} (request {self.number}, {self.kind})"


@dataclass
class Vendor:
    """Both providers of the workload. `healthy` ends all faults but those of poisoned rows."""

    world: World
    shape: Shape
    source: Random
    journal: list[Entry] = field(default_factory=list)
    bill: Decimal = Decimal(0)
    healthy: bool = False

    def __post_init__(self) -> None:
        shape = self.shape
        self._poison = {shape.text_of(*place): kind for place, kind in shape.poison.items()}
        self._script = {shape.text_of(*place): kinds for place, kinds in shape.script.items()}

    def receive(self, process: Process, request: WireRequest) -> Entry:
        """A request comes in: what becomes of it is decided here, and nobody knows yet."""
        body = orjson.loads(request.body)
        asked = [_text(message) for message in body["messages"] if message["role"] == "user"]
        text = asked[0].partition(";")[0]
        backend = self.shape.backend_of_model[body["model"]]
        now = asyncio.get_running_loop().time()
        kind = self._kind(text, backend)
        if kind in UNFIT and "response_format" not in body and "output_config" not in body:
            kind = GOOD  # nothing was said of what would fit
        number = len(self.journal) + 1
        tokens_in, tokens_out = self._tokens(len(request.body))
        cost = Decimal(tokens_in * INPUT_PRICE + tokens_out * OUTPUT_PRICE) / 1_000_000
        entry = Entry(number, process, text, backend, request.body, now, kind, cost)
        entry.usage = (tokens_in, tokens_out)
        entry.is_repair = len(asked) > 1
        if entry.is_repair:
            self.world.seen.add("repair")
        if not entry.is_paid:
            entry.cost = Decimal(0)
        entry.answer = orjson.dumps({"label": "a", "note": f"answer {number}"}).decode()
        entry.ends_at = now + self._latency(kind)
        self.journal.append(entry)
        if entry.is_paid:
            work = self.source.uniform(0.0, entry.ends_at - now)
            asyncio.get_running_loop().call_later(work, self._charge, entry)
        return entry

    def _kind(self, text: str, backend: str) -> str:
        if text in self._poison:
            return self._poison[text]
        script = self._script.get(text)
        if script:
            return script.pop(0)
        if self.healthy:
            return GOOD
        if backend in self.shape.down:
            return self.shape.down[backend]
        dice = self.source.random()
        for kind, share in self.shape.faults.items():
            dice -= share
            if dice < 0:
                return kind
        return GOOD

    def _latency(self, kind: str) -> float:
        if kind in ("hang", "late"):
            return self.source.uniform(1.0, 3.0) * self.shape.limits.request_timeout_s
        if kind in ("429", "429 wait", "429 long", "not sent"):
            return 0.01
        return self.source.uniform(0.02, 0.4)

    def _tokens(self, size: int) -> tuple[int, int]:
        """Sometimes the very most that there can be."""
        if self.source.random() < 0.3:
            return size + 512, self.shape.max_output_tokens
        return self.source.randint(1, size), self.source.randint(1, self.shape.max_output_tokens)

    def _charge(self, entry: Entry) -> None:
        entry.charged = True
        self.bill += entry.cost
        if self.shape.cap is not None and self.bill > self.shape.cap:
            self.world.violate(
                "spend never passes the cap", f"the bill is {self.bill} of {self.shape.cap} after {entry.who}"
            )

    def finish(self) -> None:
        """Do all work that was begun."""
        for entry in self.journal:
            if entry.is_paid and not entry.charged:
                self._charge(entry)

    def response(self, entry: Entry) -> WireResponse:
        """What comes back over the wire, if anything does."""
        anthropic = PROVIDERS[entry.backend] == "anthropic"
        answer = _anthropic if anthropic else _openai
        texts = {
            GOOD: entry.answer,
            "refused": "I won't",
            "cut off": entry.answer[:9],
            "no json": "hm",
            "no match": '{"label": 1}',
            "empty": " ",
        }
        if entry.kind in texts:
            return answer(texts[entry.kind], entry.kind, entry.usage)
        if entry.kind == "garbled":
            return WireResponse(200, {}, b"<html>upstream is unwell</html>")
        status = int(entry.kind[:3])
        waits = {"429 wait": str(self.shape.retry_after_s), "429 long": "500"}
        headers = {"retry-after": waits[entry.kind]} if entry.kind in waits else {}
        return _error(status, headers)


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _error(status: int, headers: dict[str, str]) -> WireResponse:
    kinds = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}
    error = {"type": kinds.get(status, "api_error"), "message": "no", "code": None}
    return WireResponse(status, headers, orjson.dumps({"type": "error", "error": error}))


def _openai(text: str, kind: str, usage: tuple[int, int]) -> WireResponse:
    reasons = {"refused": "content_filter", "cut off": "length"}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "finish_reason": reasons.get(kind, "stop"),
    }
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    body: dict[str, Any] = {"id": "c", "model": "m", "choices": [choice], "usage": counts}
    return WireResponse(200, {}, orjson.dumps(body))


def _anthropic(text: str, kind: str, usage: tuple[int, int]) -> WireResponse:
    reasons = {"refused": "refusal", "cut off": "max_tokens"}
    cached = usage[0] // 3
    counts = {
        "input_tokens": usage[0] - cached,
        "cache_read_input_tokens": cached,
        "output_tokens": usage[1],
    }
    body: dict[str, Any] = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": text}],
        "stop_reason": reasons.get(kind, "end_turn"),
        "usage": counts,
    }
    return WireResponse(200, {}, orjson.dumps(body))
