"""A worker's log: one line for each event, with run, group, batch and route; JSON when it is asked for.

`SWITCHGEAR_LOG_FORMAT=json` makes every line a JSON object, for a log store; else a line is for people:

    2026-11-22T09:15:04.120Z INFO run=… group=3 event=route.done batch=… attempt=1 route=ask results=10 …

Nothing per document is logged, and no content: ids, counts and amounts alone.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, Any

from schemas.batches import BatchReport
from schemas.errors import ConfigurationError

VARIABLE = "SWITCHGEAR_LOG_FORMAT"
FORMATS = ("text", "json")
_LOGGER = logging.getLogger("switchgear.events")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/@+")

Fields = dict[str, str | int | None]


def log_lines(
    fixed: Mapping[str, str | int], environ: Mapping[str, str] = os.environ, stream: IO[str] | None = None
) -> None:
    """Set up this process's log; `fixed` stands in every line.

    Events of ours are told from INFO on, everything else from WARNING on.

    Raises:
        ConfigurationError: the environment asks for a format that there is not.
    """
    wanted = environ.get(VARIABLE) or FORMATS[0]
    if wanted not in FORMATS:
        raise ConfigurationError(f"{VARIABLE} = {wanted!r}: give {' or '.join(FORMATS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Lines(dict(fixed), as_json=wanted == "json"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    _LOGGER.setLevel(logging.INFO)


def tell(event: str, fields: Mapping[str, str | int | None], level: int = logging.INFO) -> None:
    """One line about something that has happened."""
    _LOGGER.log(level, event, extra={"fields": {"event": event, **fields}})


def tell_batch(report: BatchReport) -> None:
    """What became of a batch: a line for it, and one for each of its routes and backends."""
    of_batch: Fields = {"batch": report.batch_id, "attempt": report.attempt}
    record = report.record
    if record is None:
        level = logging.WARNING if report.state == "failed" else logging.INFO
        tell(f"batch.{report.state}", {**of_batch, "error": report.error}, level)
        return
    for route, backends in sorted(record.totals.items()):
        for backend, totals in sorted(backends.items()):
            counts: Fields = {
                "documents": totals.documents,
                "results": totals.results,
                "calls": totals.calls,
                "replayed": totals.replayed,
                "input_tokens": totals.input_tokens,
                "output_tokens": totals.output_tokens,
                "amount_usd": None if totals.unknown else totals.amount,
                "basis": totals.basis,
            }
            tell("route.done", {**of_batch, "route": route, "backend": backend, **counts})
    failed: Fields = {f"failed_{name}": number for name, number in sorted(record.failures_by_class.items())}
    ended: Fields = {"rows": record.rows_in, "results": record.results, "failures": record.failures}
    tell(f"batch.{report.state}", {**of_batch, **ended, **failed})


class _Lines(logging.Formatter):
    """Every record as one line."""

    def __init__(self, fixed: Mapping[str, str | int], *, as_json: bool) -> None:
        super().__init__()
        self._fixed = dict(fixed)
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        at = at.replace("+00:00", "Z")
        fields = getattr(record, "fields", None) or _of_library(record)
        values: dict[str, Any] = {**self._fixed, **fields}
        if self._as_json:
            return json.dumps({"at": at, "level": record.levelname, **values}, ensure_ascii=False)
        pairs = (f"{name}={_text(value)}" for name, value in values.items() if value not in (None, ""))
        return f"{at} {record.levelname} {' '.join(pairs)}"


def _of_library(record: logging.LogRecord) -> dict[str, Any]:
    """A record that is no event of ours, traceback and all."""
    fields = {"event": "log", "logger": record.name, "message": record.getMessage()}
    if record.exc_info and record.exc_info[0] is not None:
        fields["traceback"] = "".join(traceback.format_exception(*record.exc_info))
    return fields


def _text(value: str | int) -> str:
    """A value on one line; quoted, as JSON is, where it holds more than plain characters."""
    text = str(value)
    return text if text and _PLAIN.issuperset(text) else json.dumps(text, ensure_ascii=False)
