"""From outcomes to rows: results per route as Parquet, failures, each row with usage, cost and origin."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import FAILURES_SCHEMA, chat_schema, embedding_schema
from schemas.batches import PartRef
from schemas.errors import first_line
from schemas.failures import FailureClass, is_retryable
from schemas.outcomes import Outcome
from schemas.output_types import arrow_type, arrow_value
from schemas.run import RunContext
from schemas.workload import Workload
from transforms.commit_file import packed
from transforms.layout import results_path, staging_folder
from transforms.rows import cost_column, gen_ai_column, lineage_column, storable
from transforms.store import Store
from transforms.work import WorkBatch

_ZSTD_LEVEL = 3
_MISFITS = (pa.ArrowException, OverflowError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, slots=True)
class VectorType:
    """What an embed route's vectors are: dimension, Arrow type of an element, space fingerprint."""

    dim: int
    element: pa.DataType
    space: str


@dataclass(frozen=True, slots=True)
class Written:
    """What a batch's attempt comes to: its parts, and its failures as they travel with the commit record."""

    parts: tuple[PartRef, ...]
    failures: bytes = b""


@dataclass(frozen=True, slots=True)
class PartWriter:
    """Writes the parts of a worker's batches. `vector_type` is asked for embed routes only."""

    workload: Workload
    run: RunContext
    store: Store
    input_schema: pa.Schema
    vector_type: Callable[[str], VectorType]

    def write(self, batch: WorkBatch, writer: str) -> Written:
        """Stage the batch's results under names that only `writer` uses; nothing is visible yet.

        Its failures are no object: they travel with the commit record. Outcomes whose answer can't be typed
        become failures here, so the batch's outcomes change.
        """
        folder = staging_folder(batch.ref.batch_id, batch.ref.attempt, writer)
        batch.outcomes = self._all_typed(batch.outcomes)
        parts = []
        for route in self.workload.routes:
            done = [o for o in batch.outcomes if o.is_result and o.assignment.route == route.name]
            if done:
                final = results_path(route.name, batch.ref.batch_id, batch.ref.attempt)
                staged = f"{folder}/{route.name}.parquet"
                parts.append(self._stage(self._results(route.name, batch, done), route.name, staged, final))
        failures = self._failures(batch)
        data = packed(failures)
        if data:
            digest = hashlib.sha256(data).hexdigest()
            parts.append(PartRef("failures", "", "", "", failures.num_rows, len(data), digest))
        return Written(tuple(parts), data)

    def _all_typed(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The outcomes, those as failures whose output has no value of the Arrow type."""
        by_route: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in outcomes:
            if outcome.output is not None:
                by_route[outcome.assignment.route].append(outcome)
        if all(self._fit(route, members) for route, members in by_route.items()):
            return list(outcomes)
        return [self._typed(outcome) for outcome in outcomes]  # who does not fit is found one by one

    def _fit(self, route: str, outcomes: Sequence[Outcome]) -> bool:
        try:
            _typed_array([o.output for o in outcomes], self._output_type(route))
        except _MISFITS:
            return False
        return True

    def _typed(self, outcome: Outcome) -> Outcome:
        """The outcome, or a schema mismatch if its output has no value of the Arrow type."""
        if outcome.output is None:
            return outcome
        try:
            _typed_array([outcome.output], self._output_type(outcome.assignment.route))
        except _MISFITS as error:
            message = f"the answer's JSON does not fit the typed output column: {first_line(error)}"
            return _replace_failure(outcome, FailureClass.SCHEMA_MISMATCH, message)
        return outcome

    def _output_type(self, route: str) -> pa.DataType:
        prompt = self.workload.prompts[str(self.workload.route(route).prompt)]
        assert prompt.json_schema is not None
        return arrow_type(prompt.json_schema)

    def _results(self, route: str, batch: WorkBatch, done: Sequence[Outcome]) -> pa.Table:
        positions = [o.assignment.row - batch.ref.first_row for o in done]
        copied = batch.table.select(list(self.workload.output.columns)).take(pa.array(positions, pa.int64()))
        fields = [self.input_schema.field(name) for name in self.workload.output.columns]
        columns: dict[str, Any] = {"document_id": [o.assignment.document_id for o in done]}
        columns.update({name: copied.column(name) for name in self.workload.output.columns})
        if self.workload.is_embed_route(self.workload.route(route)):
            schema = self._embedding_columns(route, batch, done, fields, columns)
        else:
            schema = self._chat_columns(route, done, fields, columns)
        columns.update(self._structs(batch, done))
        return _table(columns, schema)

    def _embedding_columns(
        self,
        route: str,
        batch: WorkBatch,
        done: Sequence[Outcome],
        fields: list[pa.Field],
        columns: dict[str, Any],
    ) -> pa.Schema:
        vector = self.vector_type(route)
        values = batch.vectors[route][np.asarray([o.vector_index for o in done])]
        flat = pa.array(np.ascontiguousarray(values).ravel(), vector.element)
        schema = embedding_schema(fields, vector.dim, vector.element, vector.space)
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type)
        columns["token_count"] = [o.token_count for o in done]
        columns["truncated"] = [o.truncated for o in done]
        columns["chunks"] = [o.chunks for o in done]
        columns["vector_space"] = pa.repeat(vector.space, len(done))
        return schema

    def _chat_columns(
        self, route: str, done: Sequence[Outcome], fields: list[pa.Field], columns: dict[str, Any]
    ) -> pa.Schema:
        prompt = self.workload.prompts[str(self.workload.route(route).prompt)]
        kind = arrow_type(prompt.json_schema) if prompt.json_schema is not None else None
        columns["answer"] = [storable(o.answer) for o in done]
        if kind is not None:
            columns["output"] = _typed_array([o.output for o in done], kind)
        return chat_schema(fields, kind)

    def _failures(self, batch: WorkBatch) -> pa.Table:
        """The batch's failures as they now stand: the new ones, and earlier ones not tried again."""
        failed = [o for o in batch.outcomes if not o.is_result]
        columns: dict[str, Any] = {
            "document_id": [o.assignment.document_id for o in failed],
            "error_class": [str(o.failure) for o in failed],
            "message": [storable(o.message) for o in failed],
            "retryable": [o.failure is not None and is_retryable(o.failure) for o in failed],
            "answer": [storable(o.answer) for o in failed],
        }
        columns.update(self._structs(batch, failed))
        table = _table(columns, FAILURES_SCHEMA)
        if batch.carried is None:
            return table
        return pa.concat_tables([batch.carried.cast(FAILURES_SCHEMA), table])

    def _structs(self, batch: WorkBatch, outcomes: Sequence[Outcome]) -> dict[str, pa.Array]:
        priors = [batch.prior.get((o.assignment.row, o.assignment.route)) for o in outcomes]
        return {
            "gen_ai": gen_ai_column(outcomes, priors),
            "cost": cost_column(outcomes, priors),
            "lineage": lineage_column(self.run, batch, outcomes),
        }

    def _stage(self, table: pa.Table, route: str, staged: str, final: str) -> PartRef:
        metadata = dict(table.schema.metadata or {})
        metadata[b"switchgear.run_id"] = self.run.run_id.encode()
        metadata[b"switchgear.workload_sha256"] = self.run.workload_sha256.encode()
        metadata[b"switchgear.rehearsal"] = str(self.run.rehearsal).lower().encode()
        sink = pa.BufferOutputStream()
        compression = self.workload.output.compression
        level = _ZSTD_LEVEL if compression == "zstd" else None
        pq.write_table(
            table.replace_schema_metadata(metadata),
            sink,
            compression=compression,
            compression_level=level,
            use_dictionary=_repeating(table.schema),
        )
        data = sink.getvalue()
        stream = self.store.stage(staged)
        stream.write(data)
        self.store.finish(stream)
        digest = hashlib.sha256(data).hexdigest()
        return PartRef("results", route, staged, final, table.num_rows, data.size, digest)


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        values = columns[field.name]
        is_arrow = isinstance(values, pa.Array | pa.ChunkedArray)
        arrays.append(values if is_arrow else pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _repeating(fields: Iterable[pa.Field], parent: str = "") -> list[str]:
    """The columns whose values may repeat, as Parquet names them: all but floating-point numbers.

    A dictionary of vectors takes six times as long to write as the vectors, and half as much space again.
    """
    names: list[str] = []
    for field in fields:
        name = f"{parent}{field.name}"
        if pa.types.is_struct(field.type):
            names += _repeating(field.type, f"{name}.")
        elif hasattr(field.type, "value_field"):
            names += _repeating([field.type.value_field.with_name("element")], f"{name}.list.")
        elif not pa.types.is_floating(field.type):
            names.append(name)
    return names


def _typed_array(outputs: Sequence[Any], kind: pa.DataType) -> pa.Array:
    return pa.array([arrow_value(output, kind) for output in outputs], kind)


def _replace_failure(outcome: Outcome, failure: FailureClass, message: str) -> Outcome:
    return replace(outcome, failure=failure, message=message, output=None)
