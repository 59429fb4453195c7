"""The ledger's format: whatever happens to its bytes, what is read is a prefix of what was written."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import LedgerError
from schemas.outcomes import Charge, Usage, money
from transforms.call.ledger import (
    charge_from,
    charge_to,
    encode_frame,
    fold,
    header,
    scan,
    usage_to,
)
from transforms.call.ledger_totals import LedgerTotals

CHARGE = Charge(
    amount=money("0.0002"),
    list_amount=money("0.0003"),
    basis="tokens",
    certainty="exact",
    price_source="book 1",
    price_as_of="2026-11-22",
)


def intended(call_id: int, attempt: int = 1, worst: str | None = "0.5") -> dict[str, Any]:
    return {
        "kind": "intended",
        "id": call_id,
        "attempt": attempt,
        "row": call_id % 7,
        "route": "r",
        "backend": "haiku",
        "call": 1,
        "request": "f" * 64,
        "worst": worst,
        "at": "2026-11-22T09:00:00+00:00",
    }


def answered(call_id: int, charge: Charge = CHARGE) -> dict[str, Any]:
    return {
        "kind": "answered",
        "id": call_id,
        "status": 200,
        "headers": {"request-id": "x"},
        "body": '{"text": "ärger \\u0000"}',
        "usage": usage_to(Usage(3, 4)),
        "charge": charge_to(charge),
        "latency_ms": 1.5,
        "at": "2026-11-22T09:00:01+00:00",
    }


def failed(call_id: int) -> dict[str, Any]:
    return {"kind": "failed", "id": call_id, "class": "overloaded", "message": "m", "at": "t"}


def unknown(call_id: int) -> dict[str, Any]:
    return {"kind": "unknown", "id": call_id, "cause": "timeout", "message": "m", "at": "t"}


def hundred_frames() -> list[dict[str, Any]]:
    frames = [header("b1", "live")]
    for call_id in range(1, 51):
        frames += [intended(call_id), [answered, failed, unknown][call_id % 3](call_id)]
    return frames[:100]


FRAMES = hundred_frames()
ENCODED = [encode_frame(frame) for frame in FRAMES]
DATA = b"".join(ENCODED)


def whole_frames_within(length: int) -> int:
    total = 0
    for number, frame in enumerate(ENCODED):
        total += len(frame)
        if total > length:
            return number
    return len(ENCODED)


def test_every_prefix_gives_exactly_the_whole_frames_in_it() -> None:
    for length in range(len(DATA) + 1):
        frames, valid = scan(DATA[:length])
        count = whole_frames_within(length)
        assert frames == FRAMES[:count]
        assert valid == sum(map(len, ENCODED[:count]))


def test_no_flipped_bit_ever_gives_a_wrong_record() -> None:
    source = random.Random(20261122)
    for _ in range(3000):
        position = source.randrange(len(DATA))
        damaged = bytearray(DATA)
        damaged[position] ^= 1 << source.randrange(8)
        frames, valid = scan(bytes(damaged))
        assert frames == FRAMES[: whole_frames_within(position)]
        assert valid <= position


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_no_frames(garbage: bytes) -> None:
    assert scan(garbage)[0] == []
    frames, valid = scan(ENCODED[0] + garbage)
    assert (frames, valid) == (FRAMES[:1], len(ENCODED[0]))


def test_a_frame_of_zeros_is_no_record() -> None:
    assert scan(bytes(4096)) == ([], 0)


def test_a_payload_that_is_no_object_ends_the_prefix() -> None:
    import struct
    import zlib

    payload = b"[1]"
    length = struct.pack("<I", len(payload))
    assert scan(length + struct.pack("<I", zlib.crc32(length + payload)) + payload) == ([], 0)


def test_folding_pairs_every_call_with_its_end() -> None:
    state = fold(
        [header("b1", "live"), *(intended(n) for n in (1, 2, 3, 4)), answered(2), failed(1), unknown(4)], "b1"
    )
    assert {n: call.end for n, call in state.calls.items()} == {
        1: "failed",
        2: "answered",
        3: None,
        4: "unknown",
    }
    assert [call.id for call in state.open_calls()] == [3]
    assert state.next_id == 5
    call = state.calls[2]
    assert (call.usage, call.charge) == (Usage(3, 4), CHARGE)
    assert call.response.body == '{"text": "ärger \\u0000"}'.encode()
    assert call.worst == Decimal("0.5")


def test_an_empty_ledger_folds_to_nothing() -> None:
    state = fold([], "b1")
    assert (state.mode, state.calls, state.next_id) == (None, {}, 1)


@pytest.mark.parametrize(
    "frames",
    [
        [intended(1)],
        [header("other", "live")],
        [{**header("b1", "live"), "version": "ledger/2"}],
        [header("b1", "live"), answered(1)],
        [header("b1", "live"), intended(1), intended(1)],
        [header("b1", "live"), intended(1), failed(1), answered(1)],
        [header("b1", "live"), {"kind": "repaired", "id": 1}],
        [header("b1", "live"), {"kind": "intended", "id": 1}],
        [{}],
    ],
)
def test_records_that_no_writer_of_this_version_makes_are_refused_and_not_guessed(frames: list[Any]) -> None:
    with pytest.raises(LedgerError, match="version"):
        fold(frames, "b1")


@given(
    st.decimals(min_value=0, max_value=10**9, places=12) | st.none(),
    st.sampled_from(["exact", "estimated", "unknown"]),
)
def test_a_charge_survives_the_ledger_to_the_last_decimal(amount: Decimal | None, certainty: Any) -> None:
    charge = Charge(amount=amount, list_amount=amount, basis="tokens", certainty=certainty)
    assert charge_from(charge_to(charge)) == charge


def test_totals_count_answers_at_list_price_and_unknown_ends_at_their_worst() -> None:
    state = fold(
        [header("b1", "live"), *(intended(n) for n in (1, 2, 3, 4)), answered(1), failed(2), unknown(3)], "b1"
    )
    totals = LedgerTotals()
    for call in state.calls.values():
        totals.add(call)
    assert (totals.calls, totals.answered, totals.ambiguous, totals.unpriced) == (4, 1, 2, 0)
    assert (totals.amount, totals.list_amount, totals.ambiguous_amount) == (
        money("0.0002"),
        money("0.0003"),
        money("1"),
    )
    assert totals.spent == money("1.0003")


def test_an_answer_that_can_not_be_priced_counts_at_its_worst_and_a_call_without_a_price_is_named() -> None:
    nothing = Charge(amount=None, list_amount=None, basis="tokens", certainty="unknown")
    frames = [header("b1", "live"), intended(1), intended(2, worst=None), intended(3, worst=None)]
    state = fold([*frames, answered(1, nothing), answered(2, nothing)], "b1")
    totals = LedgerTotals()
    for call in state.calls.values():
        totals.add(call)
    assert (totals.spent, totals.unpriced) == (money("0.5"), 2)
