"""Acting on a batch's assignments: what is sent to hosted models, what goes through the embedder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from schemas.errors import ReconcileError
from schemas.failures import FailureClass
from schemas.outcomes import Assignment, Outcome, Usage
from schemas.workload import Workload
from transforms.call.request import CallBatch, CallBatchResult, CallRequest
from transforms.embed.charge import device_charge
from transforms.embed.chips import rates_of
from transforms.prompt import PromptError
from transforms.requests import prompt_request, prompt_rows, text_request
from transforms.work import WorkBatch
from transforms.worker import Worker

if TYPE_CHECKING:
    from transforms.embed.embedder import Embeddings


def hosted_routes(workload: Workload) -> tuple[str, ...]:
    """Names of the routes whose documents go to hosted models, in the workload's order."""
    return tuple(r.name for r in workload.routes if not workload.is_local_route(r))


def embed_routes(workload: Workload) -> tuple[str, ...]:
    """Names of the routes whose documents go to an embedder here, in the workload's order."""
    return tuple(r.name for r in workload.routes if workload.is_local_route(r))


def prepare_calls(worker: Worker, batch: WorkBatch) -> CallBatch | None:
    """Take the batch's hosted assignments and render their prompts; None if there is nothing to send.

    A row whose template fails becomes a failure here.
    """
    requests: list[CallRequest] = []
    workload = worker.config.workload
    for route in hosted_routes(workload):
        taken = batch.take(frozenset({route}))
        if workload.is_embed_route(workload.route(route)):
            if taken:
                worker.vector_type(route)  # before anything is paid: whether the output takes its vectors
            requests += _embedding_requests(batch, workload.input.text, taken)
            continue
        prompt = worker.prompt(route)
        shared = len(prompt.head) if len(taken) > 1 else None
        rows = prompt_rows(batch.table, [position for position, _ in taken], prompt)
        for (position, assignment), row in zip(taken, rows, strict=True):
            try:
                digest = batch.digests[position] or ""
                requests.append(prompt_request(prompt, digest, assignment, row, shared))
            except PromptError as error:
                failure = FailureClass.PROMPT_ERROR
                batch.outcomes.append(Outcome(assignment=assignment, failure=failure, message=str(error)))
    if not requests:
        return None
    return CallBatch(batch.ref.batch_id, batch.ref.attempt, tuple(requests))


def _embedding_requests(
    batch: WorkBatch, text_column: str, taken: Sequence[tuple[int, Assignment]]
) -> list[CallRequest]:
    """Requests for vectors: the text itself, one document each."""
    positions = [position for position, _ in taken]
    texts = batch.table.column(text_column).take(pa.array(positions, pa.int64())).to_pylist()
    return [
        text_request(text, batch.digests[position] or "", assignment)
        for (position, assignment), text in zip(taken, texts, strict=True)
    ]


def finish_calls(batch: WorkBatch, asked: CallBatch, result: CallBatchResult) -> None:
    """Take the outcomes of a batch's calls.

    Raises:
        ReconcileError: an outcome is not that of the request in its place, or is missing.
    """
    if len(asked.requests) != len(result.outcomes):
        raise ReconcileError(
            f"batch {batch.ref.batch_id}: {len(asked.requests)} requests, {len(result.outcomes)} outcomes "
            "came back. This is a defect: report it"
        )
    for request, outcome in zip(asked.requests, result.outcomes, strict=True):
        if outcome.assignment != request.assignment:
            raise ReconcileError(
                f"batch {batch.ref.batch_id}: the outcome of row {outcome.assignment.row} came back for row "
                f"{request.assignment.row}. This is a defect: report it"
            )
    batch.outcomes.extend(_with_vectors_in_place(batch, result.outcomes))
    batch.ambiguous.extend(result.ambiguous)


def _with_vectors_in_place(batch: WorkBatch, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with the vectors of hosted embeddings moved into the batch's arrays."""
    vectors: dict[str, list[bytes]] = {}
    moved = []
    for outcome in outcomes:
        if outcome.vector is not None:
            of_route = vectors.setdefault(outcome.assignment.route, [])
            of_route.append(outcome.vector)
            outcome = replace(outcome, vector=None, vector_index=len(of_route) - 1)  # noqa: PLW2901
        moved.append(outcome)
    for route, packed in vectors.items():
        batch.vectors[route] = np.frombuffer(b"".join(packed), "<f4").reshape(len(packed), -1)
    return moved


@dataclass(frozen=True, slots=True)
class _Texts:
    """The texts of one batch that go through one embedder."""

    batch: WorkBatch
    assignments: list[Assignment]
    texts: list[str]


def embed_batches(worker: Worker, batches: Sequence[WorkBatch]) -> None:
    """Take the embedding assignments of some batches and embed them together, route by route."""
    for route in embed_routes(worker.config.workload):
        groups = [_texts(worker.config.workload, batch, route) for batch in batches]
        groups = [group for group in groups if group.assignments]
        if not groups:
            continue
        embedded = worker.embedder(route).embed_groups([group.texts for group in groups])
        for group, embeddings in zip(groups, embedded, strict=True):
            _take_embeddings(worker, route, group, embeddings)


def _texts(workload: Workload, batch: WorkBatch, route: str) -> _Texts:
    taken = batch.take(frozenset({route}))
    column = batch.table.column(workload.input.text)
    texts = column.take(pa.array([position for position, _ in taken], pa.int64())).to_pylist()
    return _Texts(batch, [assignment for _, assignment in taken], texts)


def _take_embeddings(worker: Worker, route: str, group: _Texts, embeddings: Embeddings) -> None:
    backend, embedder = worker.embedder_backend(route), worker.embedder(route)
    model = embedder.space.model
    name = worker.config.workload.route(route).chains[0].backends[0]
    at, chain = datetime.now(UTC), (name,)
    now, book = at.isoformat(), rates_of(embedder.device_kind, at.date())
    group.batch.vectors[route] = np.asarray(embeddings.vectors)
    columns = (  # as Python's own numbers, all at once: one by one takes as long as all the rest
        embeddings.token_counts.tolist(),
        embeddings.truncated.tolist(),
        embeddings.piece_counts.tolist(),
        embeddings.device_seconds.tolist(),
    )
    rows = zip(group.assignments, *columns, strict=True)
    for index, (assignment, tokens, truncated, chunks, seconds) in enumerate(rows):
        error = embeddings.errors.get(index)
        group.batch.outcomes.append(
            Outcome(
                assignment=assignment,
                failure=FailureClass.EMBED_ERROR if error is not None else None,
                message=error or "",
                vector_index=index,
                token_count=tokens,
                truncated=truncated,
                chunks=chunks,
                operation="embeddings",
                backend=name,
                provider="jax",
                request_model=model,
                response_model=model,
                usage=Usage(input_tokens=tokens),
                charge=device_charge(backend, seconds, book),
                chain_tried=chain,
                answered_at=now,
            )
        )
