"""How long a call takes: measured where this output says so, else assumed, and then it is called that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schemas.backends import HostedBackend
from tests.transforms.quote.bench import Bench, used
from transforms.call.ledger import encode_frame, header
from transforms.call.ledger_file import ledger_path
from transforms.quote.history import AnswerLength
from transforms.quote.latency import Latency, assumed_latency
from transforms.quote.values import Range, Seconds

SHORT = AnswerLength(10, 20, 1000, "stated")


def backend(**changes: Any) -> HostedBackend:
    return HostedBackend(**{"provider": "anthropic", "model": "claude-opus-5", **changes})


def test_a_call_takes_its_first_token_and_those_after_it_and_is_broken_off_at_its_timeout() -> None:
    latency = Latency(Seconds(0.5, 1.0, 2.0), Seconds(0.01, 0.02, 0.5), "")
    assert latency.milliseconds(SHORT, 60.0) == (600, 1400, 60_000)


@pytest.mark.parametrize("provider", ["anthropic", "openai", "gemini"])
def test_an_assumption_is_wide_names_itself_and_is_faster_for_small_models(provider: str) -> None:
    large = assumed_latency(backend(provider=provider, model="large-model"))
    small = assumed_latency(backend(provider=provider, model="model-mini"))
    assert large.basis.startswith("assumed, not measured: a call takes ")
    low, expected, high = large.milliseconds(AnswerLength(300, 300, 300, ""), 600.0)
    assert low * 2 < expected < high / 2
    assert small.milliseconds(SHORT, 60.0) < large.milliseconds(SHORT, 60.0)


def test_vectors_have_no_tokens_to_wait_for() -> None:
    found = assumed_latency(backend(provider="openai", model="m", operation="embeddings", dimensions=3))
    assert found.milliseconds(AnswerLength(0, 0, 0, ""), 60.0) == (50, 300, 3000)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """One batch of 40 answered documents, and one that is due."""
    made = Bench(tmp_path, limits__batch_rows=40)
    made.documents(80)
    made.begin()
    return made


def record_calls(bench: Bench, latencies_ms: list[float], **changes: Any) -> None:
    ref = bench.due()[0]
    frames = [header(ref.batch_id, "live")]
    for number, latency in enumerate(latencies_ms, 1):
        frames.append(
            {"kind": "intended", "id": number, "attempt": 1, "row": number, "route": "ask", "backend": "mini",
             "call": 1, "request": "r" * 64, "worst": "0.01", "at": "2026-11-22T09:00:00+00:00", **changes}
        )  # fmt: skip
        frames.append(
            {"kind": "answered", "id": number, "status": 200, "headers": {}, "body": "{}",
             "latency_ms": latency, "usage": {}, "charge": {}, "at": "2026-11-22T09:00:01+00:00"}
        )  # fmt: skip
    path = ledger_path(bench.store.root, ref.batch_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(encode_frame(frame) for frame in frames))
    bench.commit(ref, outcome=used(100, 10))


def test_calls_of_this_output_are_a_measurement_with_the_interval_of_single_calls(bench: Bench) -> None:
    record_calls(bench, [float(n) for n in range(100, 140)])
    route = bench.route()
    assert "measured: 40 calls of mini in this output took 0.12 s on average" in route.wall_basis
    assert "assumed" not in route.wall_basis
    assert route.calls == Range(40, 40, 40)


@pytest.mark.parametrize(
    ("latencies", "changes"), [([100.0] * 19, {}), ([100.0] * 40, {"via": "ticket"})], ids=["few", "batch"]
)
def test_few_calls_and_those_of_provider_batches_are_no_measurement(
    bench: Bench, latencies: list[float], changes: dict[str, Any]
) -> None:
    record_calls(bench, latencies, **changes)
    assert "assumed, not measured" in bench.route().wall_basis


def test_a_broken_ledger_only_means_that_nothing_is_measured(bench: Bench) -> None:
    record_calls(bench, [100.0] * 40)
    for path in Path(bench.store.root, "ledger").rglob("*.ledger"):
        path.write_bytes(b"nonsense")
    assert "assumed, not measured" in bench.route().wall_basis
