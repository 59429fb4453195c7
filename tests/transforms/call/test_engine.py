"""The engine as a whole: its own thread, real files, real sockets, and the rehearsal's stand-in."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from schemas.backends import HostedBackend, TokenPrice
from schemas.errors import (
    BatchClaimedError,
    BatchError,
    ConfigurationError,
    MissingSecretError,
    OutputError,
    StoreError,
)
from schemas.failures import FailureClass
from schemas.limits import Limits
from schemas.outcomes import ZERO, money
from schemas.rehearsal import Faults, Rehearsal
from schemas.routes import Prompt
from schemas.run import RunContext
from schemas.workload import Workload
from tests.transforms.call.fakes import (
    CANARY,
    HAIKU,
    LABEL_SCHEMA,
    MINI,
    make_batch,
    make_workload,
    with_parameters,
)
from transforms.call.budget_file import open_budget, read_budget
from transforms.call.engine import CallEngine, open_call_engine
from transforms.call.ledger import fold, scan
from transforms.call.ledger_file import ledger_path
from transforms.call.ledgers import read_spent
from transforms.call.request import EngineStats

QUICK = Rehearsal(latency_ms=(0.0, 1.0))


def run_context(output: Path, rehearsal: bool = True, max_in_flight: int = 64) -> RunContext:
    return RunContext("run", str(output), "w" * 64, rehearsal, max_in_flight)


def rehearse(output: Path, workload: Workload | None = None, **more: Any) -> CallEngine:
    workload = workload or make_workload(rehearsal=QUICK)
    return open_call_engine(workload, run_context(output), budget_limit=None, environ={}, **more)


def test_a_rehearsal_answers_through_real_sockets_without_any_key(tmp_path: Path) -> None:
    engine = rehearse(tmp_path)
    batches = [make_batch(30, chain, name) for chain, name in ((("haiku",), "b1"), (("mini",), "b2"))]
    batches.append(make_batch(30, ("mini", "haiku"), "b3", json_schema=LABEL_SCHEMA))
    results = [future.result(120) for future in [engine.submit(batch) for batch in batches]]
    engine.close()
    outcomes = [outcome for result in results for outcome in result.outcomes]
    assert len(outcomes) == 90
    assert all(outcome.is_result for outcome in outcomes)
    assert {outcome.charge.basis for outcome in outcomes} == {"rehearsal"}
    assert all((outcome.charge.list_amount or 0) > 0 for outcome in outcomes)
    assert all((outcome.output or {}).get("label") in ("a", "b") for outcome in outcomes[60:])
    stats = engine.stats()
    assert (stats.calls, stats.answered, stats.in_flight, stats.replayed, stats.amount) == (
        90,
        90,
        0,
        0,
        ZERO,
    )
    assert stats.list_amount == sum((o.charge.list_amount or ZERO for o in outcomes), ZERO)


def test_a_second_engine_replays_everything_and_calls_nobody(tmp_path: Path) -> None:
    first = rehearse(tmp_path)
    before = first.submit(make_batch(50)).result(120)
    first.close()
    second = rehearse(tmp_path)
    after = second.submit(make_batch(50)).result(120)
    second.close()
    assert second.stats() == EngineStats(replayed=50)
    assert [o.answer for o in after.outcomes] == [o.answer for o in before.outcomes]
    assert [o.charge for o in after.outcomes] == [o.charge for o in before.outcomes]


def test_a_storm_of_faults_loses_nothing_and_adds_up(tmp_path: Path) -> None:
    faults = Faults(
        server_error=0.05,
        overloaded=0.03,
        connection_reset=0.04,
        truncated_body=0.03,
        invalid_json=0.05,
        refusal=0.03,
        max_tokens=0.03,
    )
    rehearsal = Rehearsal(latency_ms=(0.0, 1.0), faults=faults)
    open_budget(str(tmp_path), Decimal(10), ZERO)
    workload = make_workload(rehearsal=rehearsal)
    engine = open_call_engine(workload, run_context(tmp_path), budget_limit=Decimal(10), environ={})
    batches = [make_batch(200, ("haiku", "mini"), f"b{n}", json_schema=LABEL_SCHEMA) for n in range(2)]
    results = [future.result(120) for future in [engine.submit(batch) for batch in batches]]
    engine.close()
    outcomes = [outcome for result in results for outcome in result.outcomes]
    kinds = Counter(outcome.failure for outcome in outcomes)
    assert sum(kinds.values()) == 400
    assert {FailureClass.INVALID_JSON, FailureClass.REFUSED, FailureClass.TRUNCATED, None} <= kinds.keys()
    assert sum(outcome.calls for outcome in outcomes) == engine.stats().calls
    ambiguous = [call for result in results for call in result.ambiguous]
    assert sum(outcome.ambiguous_calls for outcome in outcomes) == len(ambiguous) > 0
    totals = read_spent(str(tmp_path), ["b0", "b1"])
    assert (totals.calls, totals.answered, totals.ambiguous) == (
        engine.stats().calls,
        engine.stats().answered,
        len(ambiguous),
    )
    record = read_budget(str(tmp_path))
    assert record is not None
    assert (record.spent, record.leases) == (totals.spent, {})


def test_a_missing_key_is_found_before_anything_starts(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    with pytest.raises(MissingSecretError, match="ANTHROPIC_API_KEY"):
        open_call_engine(make_workload(), run_context(tmp_path, False), budget_limit=None, environ={})
    assert set(threading.enumerate()) <= threads
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "backend",
    [
        with_parameters(MINI, stream=True),
        MINI.model_copy(update={"base_url": "http://api.example/v1"}),
        MINI.model_copy(update={"base_url": "https://me:secret@api.example/v1"}),
    ],
)
def test_a_backend_that_cannot_be_called_safely_is_refused_at_the_start(
    tmp_path: Path, backend: HostedBackend
) -> None:
    with pytest.raises(ConfigurationError):
        open_call_engine(
            make_workload({"mini": backend}),
            run_context(tmp_path, False),
            budget_limit=None,
            environ={"OPENAI_API_KEY": CANARY},
        )


def test_a_schema_that_is_none_is_refused_at_the_start(tmp_path: Path) -> None:
    workload = make_workload().model_copy(
        update={"prompts": {"p": Prompt(template="x", json_schema={"type": "no such type"})}}
    )
    with pytest.raises(ConfigurationError, match="json_schema"):
        rehearse(tmp_path, workload)


def test_a_cap_without_its_record_is_refused_at_the_start(tmp_path: Path) -> None:
    for prepare in (lambda: None, lambda: open_budget(str(tmp_path), Decimal(7), ZERO)):
        prepare()
        with pytest.raises(OutputError, match="start the run again"):
            open_call_engine(make_workload(), run_context(tmp_path), budget_limit=Decimal(5), environ={})


def test_an_output_of_no_known_kind_is_refused_at_the_start() -> None:
    with pytest.raises(StoreError, match="s3://bucket/out: no such kind of output"):
        open_call_engine(
            make_workload(), RunContext("r", "s3://bucket/out", "", True, 1), budget_limit=None, environ={}
        )


def test_two_workers_on_one_batch_do_not_both_pay(tmp_path: Path) -> None:
    slow = make_workload(rehearsal=Rehearsal(latency_ms=(2000.0, 2000.0)))
    first, second = rehearse(tmp_path, slow), rehearse(tmp_path, slow)
    running = first.submit(make_batch(3))
    while first.stats().calls < 3:
        time.sleep(0.001)
    with pytest.raises(BatchClaimedError):
        second.submit(make_batch(3)).result(120)
    assert all(outcome.is_result for outcome in running.result(120).outcomes)
    first.close()
    second.close()


def test_closing_ends_everything_and_can_be_repeated(tmp_path: Path) -> None:
    engine = rehearse(tmp_path, make_workload(rehearsal=Rehearsal(latency_ms=(200.0, 200.0))))
    threads = threading.active_count()
    running = engine.submit(make_batch(500))
    while engine.stats().calls < 60:
        time.sleep(0.001)
    engine.close(grace_s=20)
    engine.close()
    with pytest.raises(BatchError, match="cancelled"):
        running.result(0)
    with pytest.raises(BatchError, match="cancelled"):
        engine.submit(make_batch(1)).result(0)
    calls = ledger_calls(tmp_path)
    assert {call.end for call in calls} == {"answered"}
    assert len(calls) == engine.stats().calls < 500
    assert threading.active_count() < threads


def ledger_calls(output: Path, batch_id: str = "b1") -> list[Any]:
    data = ledger_path(str(output), batch_id).read_bytes()
    return list(fold(scan(data)[0], batch_id).calls.values())


class CountingProvider:
    """A provider in a process of its own that keeps a journal of what it answered.

    It answers no more in all than `most` says, a file with a number, and lets the others wait.
    """

    def __init__(self, latency_s: float, most: Path) -> None:
        code = (
            "import asyncio,pathlib,sys\n"
            "from tests.transforms.call.test_transport import Server,http\n"
            "from tests.transforms.call.fakes import openai_answer\n"
            f"most = pathlib.Path({str(most)!r})\n"
            "answered = []\n"
            "async def main():\n"
            "    async def serve(request, reader, writer):\n"
            f"        await asyncio.sleep({latency_s})\n"
            "        while len(answered) >= int(most.read_text() or 0):\n"
            "            await asyncio.sleep(0.01)\n"
            "        answered.append(request)\n"
            "        print(request.split(b'\\r\\n\\r\\n')[1].decode(), flush=True)\n"
            "        writer.write(http(200, openai_answer('fine').body))\n"
            "    async with Server(serve) as server:\n"
            "        print(server.port, flush=True)\n"
            "        await asyncio.sleep(600)\n"
            "asyncio.run(main())\n"
        )
        self._process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def close(self) -> Counter[str]:
        """How often each prompt was answered."""
        self._process.kill()
        answered = Counter(
            orjson.loads(line)["messages"][-1]["content"]
            for line in self._process.communicate()[0].splitlines()
        )
        return answered


_WORKER = """
import sys
from schemas.run import RunContext
from tests.transforms.call.fakes import make_batch, make_workload
from tests.transforms.call.test_engine import own_server
from transforms.call.engine import open_call_engine
engine = open_call_engine(make_workload({"own": own_server(int(sys.argv[2]))}),
    RunContext("run", sys.argv[1], "", False, 8), budget_limit=None, environ={})
result = engine.submit(make_batch(int(sys.argv[3]), ("own",))).result()
engine.close()
print(sum(o.is_result for o in result.outcomes), len(result.ambiguous))
"""


def own_server(port: int) -> HostedBackend:
    price = TokenPrice(input_per_million=Decimal(1), output_per_million=Decimal(1))
    return HostedBackend(
        provider="openai",
        model="own",
        base_url=f"http://127.0.0.1:{port}/v1",
        requires_key=False,
        price=price,
    )


def test_a_killed_worker_never_pays_twice_for_an_answered_row(tmp_path: Path) -> None:
    rows, in_flight = 240, 8
    most = tmp_path / "most"
    most.write_text("0")
    provider = CountingProvider(0.02, most)
    command = [sys.executable, "-c", _WORKER, str(tmp_path / "out"), str(provider.port), str(rows)]
    answered_at_kill: list[set[int]] = []
    for wanted, allowed in ((10, 30), (40, 100)):  # killed when so many rows are in the ledger
        most.write_text(str(allowed))
        worker = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while worker.poll() is None and len(answered_rows(tmp_path / "out")) < wanted:
            time.sleep(0.002)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        answered_at_kill.append(answered_rows(tmp_path / "out"))
    most.write_text("1000")
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    results, ambiguous = map(int, done.stdout.split())
    answered = provider.close()
    assert 10 <= len(answered_at_kill[0]) < len(answered_at_kill[1]) < rows
    assert results == rows
    assert ambiguous <= 2 * in_flight
    assert sum(answered.values()) - rows <= ambiguous
    calls = ledger_calls(tmp_path / "out")
    assert Counter(call.row for call in calls if call.end == "answered") == Counter(range(rows))
    for killed in answered_at_kill:
        assert killed <= {call.row for call in calls if call.end == "answered"}


def answered_rows(output: Path) -> set[int]:
    try:
        return {call.row for call in ledger_calls(output) if call.end == "answered"}
    except FileNotFoundError:
        return set()


def test_no_file_log_or_outcome_of_a_run_that_fails_in_every_way_holds_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = subprocess.Popen([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE)
    assert provider.stdout is not None
    port = int(provider.stdout.readline())
    backends = {
        "own": own_server(port).model_copy(update={"requires_key": True}),
        "claude": HAIKU.model_copy(update={"base_url": f"http://127.0.0.1:{port}"}),
    }
    limits = Limits(request_timeout_s=0.5, max_calls=2)
    open_budget(str(tmp_path), Decimal(10), ZERO)
    with caplog.at_level(logging.DEBUG):
        engine = open_call_engine(
            make_workload(backends, limits),
            run_context(tmp_path, rehearsal=False),
            budget_limit=Decimal(10),
            environ={"OPENAI_API_KEY": CANARY, "ANTHROPIC_API_KEY": CANARY},
        )
        results = [
            engine.submit(make_batch(8, ("own", "claude"), "b1")).result(120),
            engine.submit(make_batch(8, ("claude",), "b2")).result(120),
        ]
        engine.close()
    provider.kill()
    provider.communicate()
    assert {o.failure for r in results for o in r.outcomes} >= {FailureClass.CONNECTION, FailureClass.TIMEOUT}
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 4
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]
    assert CANARY not in caplog.text
    assert CANARY not in repr(results)
    assert CANARY not in repr(vars(engine))


_ECHO = """
import asyncio
from tests.transforms.call.test_transport import Server, http
from tests.transforms.call.fakes import CANARY
async def serve(request, reader, writer):
    row = int(request.split(b'row-')[1].split(b'"')[0])
    kinds = [
        http(400, b'{"error": {"message": "bad key %s"}}' % CANARY.encode()),
        http(500, b'%s' % CANARY.encode()),
        http(200, b'not json %s' % CANARY.encode()),
        http(200, b'{"usage": {"prompt_tokens": 1, "completion_tokens": 1}, "id": "%s"}' % CANARY.encode()),
        http(529, b'', 'request-id: ' + CANARY),
        http(200, b'{"half', length=100),
    ]
    if row == 6:
        await asyncio.sleep(5)
    elif row == 7:
        writer.transport.abort()
    else:
        writer.write(kinds[row])
        await writer.drain()
    if row >= 5:
        raise ConnectionError
async def main():
    async with Server(serve) as server:
        print(server.port, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def test_the_engines_price_is_what_the_ledger_and_the_budget_have(tmp_path: Path) -> None:
    most = tmp_path / "most"
    most.write_text("10")
    provider = CountingProvider(0.0, most)
    open_budget(str(tmp_path), Decimal(1), ZERO)
    engine = open_call_engine(
        make_workload({"own": own_server(provider.port)}),
        run_context(tmp_path, rehearsal=False),
        budget_limit=Decimal(1),
        environ=dict(os.environ),
    )
    result = engine.submit(make_batch(10, ("own",))).result(120)
    engine.close()
    provider.close()
    amount = sum((outcome.charge.amount or ZERO for outcome in result.outcomes), ZERO)
    assert amount == money("0.0012") == engine.stats().amount  # 120 tokens at 1 USD a million, ten times
    assert read_spent(str(tmp_path), ["b1"]).amount == amount
    record = read_budget(str(tmp_path))
    assert record is not None
    assert record.spent == amount
