"""The reference tables of the README, made from the schemas so that they can't drift apart.

`python -m schemas.describe README.md` writes them between their markers; a test compares.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from schemas.arrow import FAILURES_SCHEMA, chat_schema, embedding_schema
from schemas.backends import EmbedderBackend, HostedBackend, TokenPrice
from schemas.budget import Budget, Review, RouteBudget
from schemas.failures import FAILURE_KINDS
from schemas.limits import Limits
from schemas.rehearsal import Faults, Rehearsal
from schemas.routes import Policy, Prompt, Rejection, Route, Split
from schemas.workload import Input, Output, Workload

_SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("(top level)", Workload),
    ("[input]", Input),
    ("[prompts.NAME]", Prompt),
    ("[backends.NAME] hosted", HostedBackend),
    ("[backends.NAME.price]", TokenPrice),
    ('[backends.NAME] provider = "jax"', EmbedderBackend),
    ("[[routes]]", Route),
    ("[[routes.split]]", Split),
    ("[policy]", Policy),
    ("[[policy.reject]]", Rejection),
    ("[budget]", Budget),
    ("[budget.routes.NAME]", RouteBudget),
    ("[review]", Review),
    ("[output]", Output),
    ("[limits]", Limits),
    ("[rehearsal]", Rehearsal),
    ("[rehearsal.faults]", Faults),
)
_NESTED = frozenset(
    {"input", "prompts", "backends", "routes", "policy", "budget", "review", "output", "limits"}
)


def columns_table() -> str:
    """Every column of results and failures, nested fields by their SQL path."""
    chat = chat_schema([], pa.struct([]))
    vectors = embedding_schema([], 1, pa.float32(), "")
    named: dict[str, tuple[str, str, str]] = {}
    for label, schema in (("chat", chat), ("embeddings", vectors), ("failures", FAILURES_SCHEMA)):
        for path, kind, text in _leaves(schema, ""):
            where = named[path][2] + f", {label}" if path in named else label
            named[path] = (kind, text, where)
    lines = ["| column | type | in | meaning |", "|---|---|---|---|"]
    for path, (kind, text, where) in named.items():
        shown = "all" if where == "chat, embeddings, failures" else where
        lines.append(f"| `{path}` | {kind} | {shown} | {text} |")
    return "\n".join(lines)


def _leaves(fields: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    for field in fields:
        path = f"{prefix}{field.name}"
        if pa.types.is_struct(field.type) and field.type.num_fields:
            yield from _leaves(field.type, f"{path}.")
        else:
            text = (field.metadata or {}).get(b"description", b"").decode()
            yield path, _kind(field), text


def _kind(field: pa.Field) -> str:
    if field.name == "output":
        return "struct by the schema"
    if field.name == "embedding":
        return "fixed_size_list of float32 or float16"
    return str(field.type).replace("element: ", "").replace("item: ", "").replace("|", "\\|")


def failures_table() -> str:
    """Every failure class: what it means, whether a rerun tries it again, what to do."""
    lines = ["| error_class | meaning | tried again by a rerun | what to do |", "|---|---|---|---|"]
    for name, kind in FAILURE_KINDS.items():
        again = "yes" if kind.retryable else "no"
        lines.append(f"| `{name}` | {kind.meaning} | {again} | {kind.remedy} |")
    return "\n".join(lines)


def workload_table() -> str:
    """Every key of a workload file, with its default."""
    lines = ["| section | key | default | meaning |", "|---|---|---|---|"]
    for section, model in _SECTIONS:
        for name, field in model.model_fields.items():
            if model is Workload and (name in _NESTED or name == "rehearsal"):
                continue
            default = _default(field.get_default(call_default_factory=True))
            lines.append(f"| `{section}` | `{name}` | {default} | {field.description or ''} |")
    return "\n".join(lines)


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "(required)"
    if value is None:
        return "(none)"
    if isinstance(value, BaseModel):
        return "(its section)"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`' if value else '`""`'
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


TABLES = {"columns": columns_table, "failures": failures_table, "workload": workload_table}


def with_tables(text: str) -> str:
    """A Markdown text with the generated tables between their markers brought up to date.

    Raises:
        ValueError: a marker is missing.
    """
    for name, table in TABLES.items():
        start, end = f"<!-- {name}: generated -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"no markers {start} … {end}")
        before, after = pattern.split(text, maxsplit=1)
        text = f"{before}{start}\n{table()}\n{end}{after}"
    return text


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text("utf-8")), "utf-8")
