"""Traces and metrics by the GenAI conventions, received by a collector on loopback."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConfigurationError
from schemas.limits import Limits
from schemas.outcomes import Usage
from schemas.rehearsal import Faults, Rehearsal
from schemas.run import RunContext
from tests.support.otlp import Receiver
from tests.transforms.call.fakes import CANARY, HAIKU, make_batch, make_workload
from transforms.call.engine import open_call_engine
from transforms.call.observe import SeenCall
from transforms.call.telemetry import SECOND_BUCKETS, TOKEN_BUCKETS, open_telemetry, signals

DURATION = "gen_ai.client.operation.duration"
LINKED = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver.start()
    yield made
    made.stop()


@pytest.fixture
def asked(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Receiver:
    """A collector that the environment names."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    return receiver


def context(folder: Path, rehearsal: bool = True) -> RunContext:
    return RunContext("20261122T091500Z-1f3a9c", str(folder), "w" * 64, rehearsal, 16)


def rehearse(folder: Path, rows: int = 5, batches: int = 1, **faults: float) -> list[Any]:
    workload = make_workload(
        rehearsal=Rehearsal(latency_ms=(5.0, 5.0), faults=Faults(**faults)),
        limits=Limits(max_calls=1, share_identical=False),
    )
    engine = open_call_engine(workload, context(folder), budget_limit=None, environ={})
    try:
        futures = [engine.submit(make_batch(rows, ("haiku",), f"{n:032x}")) for n in range(batches)]
        return [outcome for future in futures for outcome in future.result(60).outcomes]
    finally:
        engine.close()


def seen(**changes: Any) -> SeenCall:
    values: dict[str, Any] = {
        "batch_id": "b",
        "attempt": 1,
        "route": "ask",
        "backend": "haiku",
        "operation": "chat",
        "provider": "anthropic",
        "request_model": HAIKU.model,
        "max_tokens": 100,
        "base_url": "https://models.example:8443/v1",
        "seconds": 0.25,
        "usage": Usage(600, 20, 500, 10),
        "response_model": "haiku-2026",
        "response_id": "msg_1",
        "finish_reasons": ("end_turn",),
    }
    return SeenCall(**{**values, **changes})


def test_every_call_is_a_client_span_under_the_span_of_its_batch(tmp_path: Path, asked: Receiver) -> None:
    outcomes = rehearse(tmp_path, rows=3, batches=2)

    spans = asked.spans()
    batches = {span["id"]: span for span in spans if span["name"] == "switchgear.batch"}
    calls = [span for span in spans if span["name"] == f"chat {HAIKU.model}"]
    assert sorted(b["attributes"]["switchgear.batch_id"] for b in batches.values()) == [
        f"{0:032x}",
        f"{1:032x}",
    ]
    assert {b["attributes"]["switchgear.run_id"] for b in batches.values()} == {"20261122T091500Z-1f3a9c"}
    assert len(calls) == 6
    assert len(spans) == 8
    assert all(call["trace"] == batches[call["parent"]]["trace"] for call in calls)
    assert sorted(call["attributes"]["gen_ai.response.id"] for call in calls) == sorted(
        outcome.response_id for outcome in outcomes
    )
    assert sum(call["attributes"]["gen_ai.usage.input_tokens"] for call in calls) == sum(
        outcome.usage.input_tokens for outcome in outcomes
    )


def test_a_call_has_the_conventions_attributes_and_no_others(tmp_path: Path, asked: Receiver) -> None:
    telemetry = open_telemetry(context(tmp_path, rehearsal=False))
    assert telemetry is not None
    telemetry.called(seen())
    telemetry.batch_ended("b", 1)
    telemetry.close()

    call, batch = asked.spans()
    assert (call["name"], call["kind"], call["error"]) == (f"chat {HAIKU.model}", 3, False)
    assert call["seconds"] == pytest.approx(0.25, abs=1e-6)
    assert batch["seconds"] >= call["seconds"]
    assert call["attributes"] == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": HAIKU.model,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.response.model": "haiku-2026",
        "gen_ai.response.id": "msg_1",
        "gen_ai.response.finish_reasons": ["end_turn"],
        "gen_ai.usage.input_tokens": 600,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 500,
        "gen_ai.usage.cache_creation.input_tokens": 10,
        "server.address": "models.example",
        "server.port": 8443,
        "switchgear.route": "ask",
        "switchgear.backend": "haiku",
    }


def test_metrics_are_the_two_of_the_conventions_with_their_buckets(tmp_path: Path, asked: Receiver) -> None:
    telemetry = open_telemetry(context(tmp_path, rehearsal=False))
    assert telemetry is not None
    telemetry.called(seen())
    telemetry.called(seen(usage=Usage(400, 30)))
    telemetry.called(seen(error="timeout", usage=Usage(), response_model=None, seconds=60.0))
    telemetry.close()

    durations = {p["attributes"].get("error.type"): p for p in asked.points(DURATION)}
    tokens = {p["attributes"]["gen_ai.token.type"]: p for p in asked.points("gen_ai.client.token.usage")}
    assert {name: (p["unit"], p["count"], p["sum"]) for name, p in durations.items()} == {
        None: ("s", 2, 0.5),
        "timeout": ("s", 1, 60.0),
    }
    assert {name: (p["unit"], p["count"], p["sum"]) for name, p in tokens.items()} == {
        "input": ("{token}", 2, 1000),
        "output": ("{token}", 2, 50),
    }
    assert durations[None]["bounds"] == pytest.approx(SECOND_BUCKETS)
    assert durations[None]["bounds"][-1] == pytest.approx(81.92)
    assert tokens["input"]["bounds"] == list(TOKEN_BUCKETS)
    assert tokens["input"]["bounds"][-1] == 67108864
    assert durations["timeout"]["attributes"] == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": HAIKU.model,
        "server.address": "models.example",
        "server.port": 8443,
        "switchgear.route": "ask",
        "switchgear.backend": "haiku",
        "error.type": "timeout",
    }


def test_a_call_that_failed_is_an_error_of_its_class(tmp_path: Path, asked: Receiver) -> None:
    rehearse(tmp_path, rows=8, overloaded=0.5)

    calls = [span for span in asked.spans() if span["name"] != "switchgear.batch"]
    failed = [span for span in calls if span["error"]]
    assert failed
    assert {span["attributes"]["error.type"] for span in failed} == {"overloaded"}
    assert not any("gen_ai.response.id" in span["attributes"] for span in failed)
    assert not any("error.type" in span["attributes"] for span in calls if not span["error"])


def test_neither_prompts_nor_answers_nor_ids_nor_keys_leave(
    tmp_path: Path, asked: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", CANARY)
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    outcomes = rehearse(tmp_path)

    sent = b"".join(asked.bodies)
    private = [CANARY, "row-0", *(str(outcome.answer) for outcome in outcomes)]
    assert len(private) == 7
    assert [text for text in private if text.encode() in sent] == []
    ids = {outcome.assignment.document_id for outcome in outcomes}
    assert not ids & {str(value) for span in asked.spans() for value in span["attributes"].values()}


def test_replayed_answers_are_no_calls_and_make_no_span(tmp_path: Path, asked: Receiver) -> None:
    rehearse(tmp_path)
    before = len(asked.spans())
    rehearse(tmp_path)
    assert (before, len(asked.spans())) == (6, 6)


def test_the_batches_link_to_whoever_started_the_process(
    tmp_path: Path, asked: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{LINKED}-00f067aa0ba902b7-01")
    rehearse(tmp_path, rows=1)
    (batch,) = [span for span in asked.spans() if span["name"] == "switchgear.batch"]
    assert batch["links"] == [LINKED]
    assert batch["parent"] == b""


def test_who_sends_is_named_by_the_standard_variables(
    tmp_path: Path, asked: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue")
    rehearse(tmp_path / "a", rows=1)
    assert asked.resource()["service.name"] == "switchgear"
    assert {headers["x-tenant"] for headers in asked.headers} == {"blue"}

    asked.traces.clear()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "nightly")
    rehearse(tmp_path / "b", rows=1)
    assert asked.resource()["service.name"] == "nightly"


def test_one_signal_may_be_asked_for_alone(
    tmp_path: Path, asked: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    rehearse(tmp_path, rows=2)
    assert asked.traces == []
    assert [p["count"] for p in asked.points(DURATION)] == [2]


def test_a_sampler_spares_spans_and_not_measurements(
    tmp_path: Path, asked: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    rehearse(tmp_path, rows=2)
    assert asked.traces == []
    assert [p["count"] for p in asked.points(DURATION)] == [2]


def test_a_collector_that_refuses_does_not_touch_the_run(
    tmp_path: Path, asked: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.status = 503
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    started = time.monotonic()
    assert all(outcome.is_result for outcome in rehearse(tmp_path))
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, set()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, set()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, {"traces", "metrics"}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "True"}, set()),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c"}, {"metrics"}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_METRICS_EXPORTER": "none"}, {"traces"}),
        ({"OTEL_TRACES_EXPORTER": "console"}, set()),
    ],
)
def test_telemetry_is_on_where_a_collector_is_named(environ: dict[str, str], on: set[str]) -> None:
    assert signals(environ) == on


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_METRICS_EXPORTER", "prometheus"),
    ],
)
def test_an_exporter_that_is_not_here_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} = '{value}'"):
        signals({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", name: value})


def test_off_it_is_not_even_imported(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from transforms.call.engine import open_call_engine\n"
        "from tests.transforms.call.fakes import make_workload\n"
        "from schemas.run import RunContext\n"
        f"run = RunContext('r', {str(tmp_path)!r}, 'w' * 64, True, 4)\n"
        "before = set(sys.modules)\n"
        "open_call_engine(make_workload(), run, budget_limit=None, environ={}).close()\n"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('opentelemetry')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
