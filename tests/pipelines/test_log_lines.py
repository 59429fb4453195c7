"""A worker's log: one line an event, for people or as JSON."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from pipelines.log_lines import log_lines, tell, tell_batch
from schemas.batches import BackendTotals, BatchReport
from schemas.errors import ConfigurationError
from tests.flows.conftest import make_record, make_ref

FIXED = {"run": "20261122T091500Z-1f3a9c", "group": 3}


@pytest.fixture
def own_logging() -> Iterator[None]:
    """The process's logging is put back afterwards."""
    root, level = logging.getLogger(), logging.getLogger().level
    before = list(root.handlers)
    yield
    root.handlers[:] = before
    root.setLevel(level)


def log(environ: dict[str, str]) -> io.StringIO:
    stream = io.StringIO()
    log_lines(FIXED, environ, stream)
    return stream


def report() -> BatchReport:
    totals = {
        "ask": {
            "mini": BackendTotals(8, 7, 9, 1, 0, "0", 600, 80, "0.0021", "0.0021", 0, 0.0, "tokens"),
            "big": BackendTotals(2, 2, 2, unknown=2, basis="tokens"),
        }
    }
    record = make_record(
        make_ref(7), results=9, failures=1, failures_by_class={"timeout": 1}, totals=totals, retryable=1
    )
    return BatchReport(record.batch_id, 1, "committed", record=record)


@pytest.mark.usefixtures("own_logging")
def test_a_batch_is_one_line_and_so_is_each_of_its_routes_backends() -> None:
    stream = log({"SWITCHGEAR_LOG_FORMAT": "json"})
    tell_batch(report())

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all(line.pop("at").endswith("Z") for line in lines)
    common = {"level": "INFO", **FIXED, "batch": f"{7:032x}", "attempt": 1}
    route: dict[str, Any] = {**common, "event": "route.done", "route": "ask", "basis": "tokens"}
    assert lines == [
        {**route, "backend": "big", "documents": 2, "results": 2, "calls": 2, "replayed": 0,
         "input_tokens": 0, "output_tokens": 0, "amount_usd": None},
        {**route, "backend": "mini", "documents": 8, "results": 7, "calls": 9, "replayed": 1,
         "input_tokens": 600, "output_tokens": 80, "amount_usd": "0.0021"},
        {**common, "event": "batch.committed", "rows": 10, "results": 9, "failures": 1, "failed_timeout": 1},
    ]  # fmt: skip


@pytest.mark.usefixtures("own_logging")
def test_for_people_a_line_is_names_and_values() -> None:
    stream = log({})
    tell_batch(BatchReport("b" * 32, 2, "failed", "the file's pages\ncan't be read"))

    at, level, rest = stream.getvalue().split(" ", 2)
    assert at.endswith("Z")
    assert level == "WARNING"
    assert rest == (
        "run=20261122T091500Z-1f3a9c group=3 event=batch.failed "
        f"batch={'b' * 32} attempt=2 error=\"the file's pages\\ncan't be read\"\n"
    )


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize("form", ["text", "json"])
def test_what_libraries_say_is_one_line_too_with_its_traceback(form: str) -> None:
    stream = log({"SWITCHGEAR_LOG_FORMAT": form})
    try:
        raise ValueError("bad\nnews")
    except ValueError:
        logging.getLogger("apache_beam.runners").exception("it %s", "broke")
    logging.getLogger("apache_beam.runners").info("nobody wants to know")

    (line,) = stream.getvalue().splitlines()
    assert "it broke" in line
    assert "Traceback" in line
    assert "ValueError: bad" in line
    assert FIXED["run"] in line
    if form == "json":
        assert json.loads(line)["logger"] == "apache_beam.runners"


@pytest.mark.usefixtures("own_logging")
def test_a_value_cannot_add_a_line_or_a_field() -> None:
    stream = log({})
    tell("worker.started", {"workload": "a b=c\nevent=forged"})
    assert stream.getvalue().endswith(' event=worker.started workload="a b=c\\nevent=forged"\n')


def test_a_format_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="SWITCHGEAR_LOG_FORMAT = 'xml': give text or json"):
        log_lines(FIXED, {"SWITCHGEAR_LOG_FORMAT": "xml"})
