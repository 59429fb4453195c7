"""Arrow schemas of everything that is written: results, failures, plan.

Three nested structs carry usage, cost and origin of every row, so that
`SELECT gen_ai.usage.input_tokens, cost.amount, lineage.source.uri` works in DuckDB, Polars and
BigQuery alike. Field names of `gen_ai` are those of the OpenTelemetry GenAI conventions.
"""

from __future__ import annotations

import pyarrow as pa

from schemas.outcomes import MONEY_SCALE

SCHEMA_VERSION = "1"
MONEY = pa.decimal128(24, MONEY_SCALE)
TIMESTAMP = pa.timestamp("us", tz="UTC")


def _described(name: str, kind: pa.DataType, text: str) -> pa.Field:
    return pa.field(name, kind, metadata={"description": text})


_PROVIDERS = "`anthropic`, `openai`, `gcp.gemini`, `gcp.vertex_ai`, `jax`"
GEN_AI = pa.struct(
    [
        pa.field("operation", pa.struct([_described("name", pa.string(), "`chat` or `embeddings`")])),
        pa.field("provider", pa.struct([_described("name", pa.string(), _PROVIDERS)])),
        pa.field("request", pa.struct([_described("model", pa.string(), "model that was asked for")])),
        pa.field(
            "response",
            pa.struct(
                [
                    _described("model", pa.string(), "model that answered, as the provider names it"),
                    _described("id", pa.string(), "the provider's id of the answer"),
                    _described("finish_reasons", pa.list_(pa.string()), "why the model stopped"),
                ]
            ),
        ),
        pa.field(
            "usage",
            pa.struct(
                [
                    _described("input_tokens", pa.int64(), "all input tokens of all calls for this row"),
                    _described("output_tokens", pa.int64(), "all output tokens of all calls for this row"),
                    pa.field(
                        "cache_read",
                        pa.struct([_described("input_tokens", pa.int64(), "of them read from the cache")]),
                    ),
                    pa.field(
                        "cache_creation",
                        pa.struct([_described("input_tokens", pa.int64(), "of them written to the cache")]),
                    ),
                ]
            ),
        ),
    ]
)

COST = pa.struct(
    [
        _described("amount", MONEY, "what is billed for this row; NULL when the price is unknown"),
        _described("list_amount", MONEY, "at list price; in a rehearsal: what the real call would cost"),
        _described("currency", pa.string(), "ISO 4217"),
        _described(
            "basis",
            pa.string(),
            "`tokens`, `device_seconds`, `replayed`, `rehearsal`, `shared` (another row paid) or `none`",
        ),
        _described("price_source", pa.string(), "price book and version, or `workload`"),
        _described("price_as_of", pa.string(), "date of the price"),
        _described("certainty", pa.string(), "`exact`, `estimated` or `unknown`"),
        _described("device_seconds", pa.float64(), "this row's share of the device's time"),
        _described("energy_wh_low", pa.float64(), "energy, lower bound, watt-hours"),
        _described("energy_wh_high", pa.float64(), "energy, upper bound, watt-hours"),
        _described("calls", pa.int32(), "requests sent for this row, over all attempts"),
        _described("replayed_calls", pa.int32(), "answers taken from the ledger instead of a new request"),
        _described("ambiguous_calls", pa.int32(), "requests without a known end; they may have been billed"),
        _described("ambiguous_amount", MONEY, "the most that the ambiguous requests may have cost"),
    ]
)

LINEAGE = pa.struct(
    [
        _described("run_id", pa.string(), "run that wrote the row"),
        _described("batch_id", pa.string(), "batch of the row"),
        _described("attempt", pa.int32(), "attempt of the batch, from 1"),
        _described("workload_sha256", pa.string(), "version of the workload"),
        _described("code_version", pa.string(), "version of Switchgear"),
        pa.field(
            "source",
            pa.struct(
                [
                    _described("uri", pa.string(), "input file"),
                    _described("generation", pa.string(), "its content (local: SHA-256; GCS: generation)"),
                    _described("row_group", pa.int32(), "row group, from 0"),
                    _described("row", pa.int64(), "row in the row group, from 0"),
                ]
            ),
        ),
        _described("document_sha256", pa.string(), "of the text's UTF-8 bytes"),
        _described("prompt_sha256", pa.string(), "of the prompt: template, system text, JSON Schema"),
        _described("request_sha256", pa.string(), "of the request's bytes as last sent"),
        _described("route", pa.string(), "route that the document took"),
        _described("rule", pa.string(), "why: the route's `when`, and the arm of its split"),
        _described("chain_tried", pa.list_(pa.string()), "backends that were tried, in order"),
        _described("policy", pa.string(), "`passed`, or the rule that rejected the document"),
        pa.field(
            "shared_from",
            pa.struct(
                [
                    _described("batch_id", pa.string(), "batch of the row whose answer this row shares"),
                    _described("row", pa.int64(), "that row, in its row group"),
                    _described("route", pa.string(), "that row's route"),
                    _described("document_id", pa.string(), "that row's document id"),
                ]
            ),
        ),
        _described("latency_ms", pa.float64(), "of the call that answered"),
        _described("answered_at", TIMESTAMP, "when the answer arrived"),
    ]
)

_TAIL = [
    _described("gen_ai", GEN_AI, "model and tokens, by the OpenTelemetry GenAI names"),
    _described("cost", COST, "what the row cost"),
    _described("lineage", LINEAGE, "where the row comes from"),
]

FAILURES_SCHEMA = pa.schema(
    [
        _described("document_id", pa.string(), "the document's id; NULL when it has none"),
        _described("error_class", pa.string(), "see the table of failure classes"),
        _described("message", pa.string(), "what happened, in one sentence"),
        _described("retryable", pa.bool_(), "whether the next run tries it again by itself"),
        _described("answer", pa.string(), "the raw answer, when there was one"),
        *_TAIL,
    ],
    metadata={"switchgear.schema": f"failures/{SCHEMA_VERSION}"},
)

PLAN_SCHEMA = pa.schema(
    [
        _described("batch_id", pa.string(), "the batch"),
        _described("uri", pa.string(), "input file"),
        _described("generation", pa.string(), "its content"),
        _described("row_group", pa.int32(), "row group, from 0"),
        _described("first_row", pa.int64(), "first row in the row group"),
        _described("row_count", pa.int64(), "number of rows"),
        _described("attempt", pa.int32(), "attempt that is due"),
        _described("previous_attempt", pa.int32(), "committed attempt whose failures are tried again"),
        _described("duplicate_rows", pa.list_(pa.int64()), "rows whose id stood in an earlier batch"),
        _described("retry_classes", pa.list_(pa.string()), "failure classes to retry besides retryable ones"),
        _described("size", pa.int64(), "bytes of the file when planned"),
        _described("mtime_ns", pa.int64(), "modification time of a local file when planned"),
    ],
    metadata={"switchgear.schema": f"plan/{SCHEMA_VERSION}"},
)


_COUNTS = pa.map_(pa.string(), pa.int64())
COMMITS_SCHEMA = pa.schema(
    [
        _described("batch_id", pa.binary(16), "the batch"),
        _described("attempt", pa.int32(), "the attempt that was committed, from 1"),
        _described("record_digest", pa.binary(16), "first half of the SHA-256 of the commit record's bytes"),
        _described("run_id", pa.string(), "run that committed it"),
        _described("uri", pa.string(), "input file"),
        _described("generation", pa.string(), "its content"),
        _described("rows_in", pa.int64(), "rows of the batch"),
        _described("rows_skipped", pa.int64(), "rows that a filter left out"),
        _described("assignments", pa.int64(), "pairs of a document and a route"),
        _described("results", pa.int64(), "results of this attempt"),
        _described("failures", pa.int64(), "failures that stand after this attempt"),
        _described("failures_by_class", _COUNTS, "the same by class"),
        _described("failures_by_route", _COUNTS, "the same by route"),
        _described("results_by_route", _COUNTS, "results by route"),
        _described("refused", pa.map_(pa.string(), pa.string()), "by cap: the least amount that it refused"),
        _described("duplicate_rows", pa.list_(pa.int64()), "rows whose id stood in an earlier batch"),
        _described("rehearsal", pa.bool_(), "whether it was rehearsed"),
        _described(
            "totals",
            pa.list_(
                pa.struct(
                    [
                        _described("route", pa.string(), "route"),
                        _described("backend", pa.string(), "the last backend that was tried"),
                        _described("documents", pa.int64(), "documents of this attempt"),
                        _described("results", pa.int64(), "of them results"),
                        _described("calls", pa.int64(), "calls"),
                        _described("replayed", pa.int64(), "of them taken from the ledger"),
                        _described("ambiguous", pa.int64(), "calls without a known end"),
                        _described("ambiguous_amount", MONEY, "the most that those may have cost"),
                        _described("input_tokens", pa.int64(), "input tokens"),
                        _described("output_tokens", pa.int64(), "output tokens"),
                        _described("amount", MONEY, "what is billed"),
                        _described("list_amount", MONEY, "at list price"),
                        _described("unknown", pa.int64(), "documents of unknown price"),
                        _described("device_seconds", pa.float64(), "device time"),
                        _described("basis", pa.string(), "as in `cost.basis`"),
                        _described("shared", pa.int64(), "documents that took another one's answer"),
                    ]
                )
            ),
            "what this attempt spent, by route and backend",
        ),
        _described(
            "ambiguous",
            pa.list_(
                pa.struct(
                    [
                        _described("row", pa.int64(), "row in the row group"),
                        _described("route", pa.string(), "route"),
                        _described("backend", pa.string(), "backend"),
                        _described("cause", pa.string(), "why its end is not known"),
                        _described("worst_amount", pa.string(), "the most that it can have cost"),
                        _described("sent_at", pa.string(), "when it was sent"),
                        _described("worst_tokens", pa.int64(), "the most tokens that it can have used"),
                    ]
                )
            ),
            "calls that were sent and whose end is not known",
        ),
    ],
    metadata={"switchgear.schema": f"commits/{SCHEMA_VERSION}"},
)


def chat_schema(columns: list[pa.Field], output: pa.DataType | None) -> pa.Schema:
    """Schema of the results of a hosted route: id, copied columns, answer, typed output, the structs."""
    fields = [_described("document_id", pa.string(), "the document's id"), *columns]
    fields.append(_described("answer", pa.string(), "the model's answer, as it was given"))
    if output is not None:
        fields.append(_described("output", output, "the answer's JSON, typed by the prompt's schema"))
    return pa.schema([*fields, *_TAIL], metadata={"switchgear.schema": f"results.chat/{SCHEMA_VERSION}"})


def embedding_schema(columns: list[pa.Field], dim: int, dtype: pa.DataType, space: str) -> pa.Schema:
    """Schema of the results of an embed route; `space` is the fingerprint of the vector space."""
    vector = pa.field(
        "embedding",
        pa.list_(pa.field("item", dtype, nullable=False), dim),
        metadata={"description": "the vector", "switchgear.vector_space": space},
    )
    fields = [
        _described("document_id", pa.string(), "the document's id"),
        *columns,
        vector,
        _described("token_count", pa.int32(), "tokens that were embedded"),
        _described("truncated", pa.bool_(), "whether the text was longer than the model's maximum, and cut"),
        _described("chunks", pa.int32(), "pieces the text was embedded in; the vector is their mean"),
        _described("vector_space", pa.string(), "fingerprint: vectors compare only within one space"),
    ]
    return pa.schema(
        [*fields, *_TAIL],
        metadata={
            "switchgear.schema": f"results.embedding/{SCHEMA_VERSION}",
            "switchgear.vector_space": space,
        },
    )


RESERVED_COLUMNS = frozenset(
    {"document_id", "answer", "output", "embedding", "token_count", "truncated", "chunks", "vector_space"}
    | {"gen_ai", "cost", "lineage"}
)
