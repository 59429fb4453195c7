"""Checking a workload before anything is read in earnest or paid for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.backends import HostedBackend
from schemas.errors import InputError, MissingSecretError, ModelError, Problem, WorkloadError
from schemas.load import LoadedWorkload
from schemas.outcomes import Usage
from schemas.workload import Workload
from transforms.call.secret import key_variable
from transforms.call.vertex import google_tokens, price_factor
from transforms.expressions import ExpressionError, check_condition, compile_condition
from transforms.files import find_input, refuse_own_results
from transforms.input_files import InputFiles
from transforms.prompt import check_prompt

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class BackendCheck:
    """What is known of a backend before it is used. `price` is a sentence; `key` is empty if set."""

    name: str
    provider: str
    model: str
    price: str
    price_known: bool
    missing_key: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check has found; it is given only when there is no problem."""

    workload: str
    workload_sha256: str
    files: int
    rows: int
    skipped_files: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    backends: tuple[BackendCheck, ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for people."""
        columns = ", ".join(f"{name} {kind}" for name, kind in self.columns)
        head = [
            f"workload {self.workload}, version {self.workload_sha256[:12]}",
            f"input: {_files(self.files)}, {self.rows:,} rows; {columns}",
        ]
        backends = [f"backend {b.name}: {b.provider} {b.model}; {b.price}" for b in self.backends]
        return [*head, *backends, *(f"warning: {w}" for w in self.warnings)]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def check_workload(
    loaded: LoadedWorkload,
    *,
    environment: Mapping[str, str] = os.environ,
    found: InputFiles | None = None,
) -> CheckReport:
    """Check a workload's expressions and prompts against the input's real schema, models and prices.

    A key that is not set is a warning here: see `require_keys`. `found` is the input, if it was read already.

    Raises:
        WorkloadError: expressions, prompts or models can't be used; every problem is listed.
        InputError: the input can't be used.
    """
    workload = loaded.workload
    found = found or find_input(loaded.input_uri, workload.input)
    refuse_own_results(found, loaded.output_uri)
    problems = [*_expression_problems(workload, found.schema), *_prompt_problems(workload)]
    unusable, remarks = _describe_models(loaded)
    problems += unusable
    if problems:
        raise WorkloadError(str(loaded.path), problems)
    backends = tuple(_check_backend(n, b, environment) for n, b in workload.hosted_backends().items())
    embedders = tuple(
        BackendCheck(
            n,
            "jax",
            b.model_path,
            "no price_per_device_hour: its cost is unknown, but for TPUs with a list price"
            if b.price_per_device_hour is None
            else f"{b.price_per_device_hour} USD a device hour",
            b.price_per_device_hour is not None,
            "",
        )
        for n, b in workload.embedder_backends().items()
    )
    rows = found.files.rows
    if rows == 0:
        raise InputError(
            f"input {loaded.input_uri}: {_files(len(found.files))}, but no row in any of them. Give files "
            "with documents"
        )
    return CheckReport(
        workload=workload.name,
        workload_sha256=workload.digest(),
        files=len(found.files),
        rows=rows,
        skipped_files=found.skipped,
        columns=tuple((f.name, _type_name(f.type)) for f in found.schema),
        backends=backends + embedders,
        warnings=(*_warnings(workload, backends), *remarks),
    )


def require_usable(loaded: LoadedWorkload, schema: pa.Schema) -> None:
    """Make sure that expressions and prompts can be used on an input of this schema.

    Raises:
        WorkloadError: they can't; every problem is listed.
    """
    problems = [*_expression_problems(loaded.workload, schema), *_prompt_problems(loaded.workload)]
    if problems:
        raise WorkloadError(str(loaded.path), problems)


def require_keys(
    workload: Workload,
    environment: Mapping[str, str] = os.environ,
    find_credentials: Callable[[], object] = google_tokens,
) -> None:
    """Make sure that every hosted backend in use has its key, and that Vertex's have credentials.

    Raises:
        MissingSecretError: names every variable that is missing and the backends that need it, or says
            that there are no application default credentials.
    """
    missing: dict[str, list[str]] = {}
    for name, backend in workload.hosted_backends().items():
        variable = missing_key(backend, environment)
        if variable:
            missing.setdefault(variable, []).append(name)
    if missing:
        wanted = "; ".join(f"{v} (backend {', '.join(names)})" for v, names in missing.items())
        raise MissingSecretError(
            f"these environment variables are not set: {wanted}. Set them, or rehearse with --rehearsal: "
            "free, answered by a stand-in on this machine, and labelled in every row"
        )
    if any(backend.platform == "vertex" for backend in workload.hosted_backends().values()):
        find_credentials()


def missing_key(backend: HostedBackend, environment: Mapping[str, str]) -> str:
    """The name of the variable that a backend's key is missing from; empty if nothing is missing.

    Vertex takes no key: whether it has credentials is found out by `require_keys` alone, because where
    there are none that takes some seconds.
    """
    variable = key_variable(backend)
    return (
        "" if not variable or not backend.requires_key or environment.get(variable, "").strip() else variable
    )


def _expression_problems(workload: Workload, schema: pa.Schema) -> Iterable[Problem]:
    expressions = [(f"routes[{i}].when", r.when) for i, r in enumerate(workload.routes)]
    expressions += [(f"policy.reject[{i}].when", r.when) for i, r in enumerate(workload.policy.reject)]
    if workload.input.filter:
        expressions.append(("input.filter", workload.input.filter))
    for where, sql in expressions:
        try:
            problem = check_condition(compile_condition(where, sql), schema)
        except ExpressionError as error:
            problem = error.problem
        if problem is not None:
            yield problem


def _prompt_problems(workload: Workload) -> Iterable[Problem]:
    columns = list(workload.input.needed_columns)
    for name, prompt in workload.prompts.items():
        yield from check_prompt(name, prompt, columns)


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number:,} files"


def _describe_models(loaded: LoadedWorkload) -> tuple[list[Problem], list[str]]:
    """Why embedders can't be used, and what is odd about those that can."""
    embedders = loaded.workload.embedder_backends()
    problems: list[Problem] = []
    remarks: list[str] = []
    if not embedders:
        return problems, remarks
    from transforms.embed.embedder import describe_model

    for name, backend in embedders.items():
        try:
            found = describe_model(backend, Path(loaded.base_dir)).problems
        except ModelError as error:
            given = repr(backend.model_path)
            why = str(error).removeprefix(f"model_path = {given}: ")  # the problem says both once already
            problems.append(Problem(f"backends.{name}.model_path", given, why))
        else:
            remarks += [f"backend {name}: {remark}" for remark in found]
    return problems, remarks


def _check_backend(name: str, backend: HostedBackend, environment: Mapping[str, str]) -> BackendCheck:
    sentence = _price_sentence(backend, datetime.now(UTC))
    missing = missing_key(backend, environment)
    known = sentence is not None
    provider = f"{backend.provider} on vertex" if backend.platform == "vertex" else backend.provider
    return BackendCheck(name, provider, backend.model, sentence or "no known price", known, missing)


def _price_sentence(backend: HostedBackend, now: datetime) -> str | None:
    """The backend's prices in words; None if there are none."""
    from transforms.price import PriceBook

    book = PriceBook()
    embeds = backend.operation == "embeddings"
    charges = [
        book.price(backend.provider, backend.model, usage, now, own=backend.price)
        for usage in (Usage(_MILLION, 0), Usage(0, _MILLION))[: 1 if embeds else 2]
    ]
    prices = [f"{charge.amount.normalize():f}" for charge in charges if charge.amount is not None]
    if len(prices) < len(charges):
        return None
    source = charges[0].price_source
    premium = price_factor(backend) if backend.price is None else 1
    note = f"; {premium:g} times that at {backend.location}" if premium != 1 else ""
    output = "" if embeds else f", {prices[1]} a million output tokens"
    return f"{prices[0]} USD a million input tokens{output} ({source}{note})"


def _warnings(workload: Workload, backends: Iterable[BackendCheck]) -> Iterable[str]:
    for backend in backends:
        if backend.missing_key:
            yield f"{backend.missing_key} is not set: backend {backend.name} can only be rehearsed"
        if not backend.price_known and workload.budget.amount is not None:
            refused = workload.budget.on_unknown_price == "refuse"
            outcome = "its documents will be refused" if refused else "its cost can't be held by the budget"
            yield f"backend {backend.name} ({backend.model}) has no known price: {outcome}"


def _type_name(kind: pa.DataType) -> str:
    return "string" if pa.types.is_large_string(kind) else str(kind)
