"""The steps of a run that concern provider batches: collect first, submit last, wait never.

They are the driver's, which holds the output's lock; workers are not at work meanwhile. Each step goes
from one durable record to the next and may be cut anywhere: the next run finds what is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import timedelta
from types import TracebackType
from typing import Any

from schemas.backends import HostedBackend
from schemas.errors import BatchError, LedgerError, StoreError
from schemas.failures import FailureClass
from schemas.run import RunContext
from schemas.workload import Workload
from transforms.batchmode.anthropic_api import AnthropicBatches
from transforms.batchmode.clients import BatchClient, BatchLostError, BatchRefusedError
from transforms.batchmode.collecting import Collector
from transforms.batchmode.gemini_api import GeminiBatches
from transforms.batchmode.jobs import Job, JobState, read_jobs, write_record
from transforms.batchmode.leaders import leaders_at_providers
from transforms.batchmode.openai_api import OpenAIBatches
from transforms.batchmode.packing import pack
from transforms.batchmode.results import Spool, no_line, not_worked_on
from transforms.batchmode.sending import Sender
from transforms.batchmode.tickets import FOLDER, is_open, read_open_tickets, sweep_bodies
from transforms.batchmode.vertex_api import VertexBatches
from transforms.call.codecs import base_url_of
from transforms.call.ledgers import open_ledgers
from transforms.call.ports import Clock, LedgerStore, SystemClock
from transforms.call.secret import read_key
from transforms.call.site import Place, Site, build_sites, place_of
from transforms.call.vertex import google_credentials
from transforms.call.wire import CallFailure
from transforms.price import PriceBook
from transforms.store import Store, open_store

ABANDON_AFTER_H = 24.0
"""A batch that has not ended so long after its deadline, though cancelled, is given up: its requests count
at their worst case, are listed as calls of unknown end, and go out online."""

_PROVIDER_TROUBLES = (BatchRefusedError, BatchLostError)
_OUR_TROUBLES = (BatchError, LedgerError, StoreError)
ClientOf = Callable[[Site], BatchClient]


class ProviderBatches:
    """The provider batches of one output. Used by one driver at a time, and closed."""

    def __init__(
        self,
        store: Store,
        ledgers: LedgerStore,
        sites: Mapping[str, Site],
        deadline_h: float,
        clock: Clock,
        client_of: ClientOf,
        *,
        share: bool = True,
    ) -> None:
        self._store = store
        self._share = share
        self._sites = sites
        self._deadline_h = deadline_h
        self._clock = clock
        self._collector = Collector(store, ledgers, sites, clock)
        self._client_of = client_of
        self._clients: dict[str, BatchClient] = {}
        self._closers = ExitStack()

    def __enter__(self) -> ProviderBatches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close connections."""
        self._closers.close()

    def collect(self) -> list[str]:
        """Take every open job a step further; a sentence about each. Done before a run is planned.

        What is wrong with one job, or with its provider, is said and leaves the others alone.
        """
        return [self._guarded(state, self._step) for state in read_jobs(self._store)]

    def submit(self) -> list[str]:
        """Pack what waits into jobs and submit them; a sentence about each. Done when no worker is left."""
        tickets = list(read_open_tickets(self._store))
        taken = {(p.batch_id, p.number) for s in read_jobs(self._store) for p in s.job.tickets}
        backends = {name: site.backend for name, site in self._sites.items()}
        said: list[str] = []
        leaders = leaders_at_providers(tickets, read_jobs(self._store)) if self._share else None
        for job in pack(tickets, taken, backends, self._clock.now(), leaders=leaders):
            self._store.create(f"{FOLDER}/jobs/{job.tag}/intended.json", job.to_json())
            said.append(self._guarded(JobState(job), self._send))
        jobs = {(p.batch_id, p.number): s for s in read_jobs(self._store) for p in s.job.tickets}
        submitted = {key for key, s in jobs.items() if s.provider_batch_id is not None or not s.job.sent}
        open_still = read_open_tickets(self._store)
        sweep_bodies(self._store, [t for t in open_still if (t.batch_id, t.number) not in submitted])
        return said

    def _guarded(self, state: JobState, step: Callable[[JobState, BatchClient], str]) -> str:
        site = self._sites.get(state.job.backend)
        if site is None:
            return f"the workload has no backend {state.job.backend!r} any more: its batch waits"
        try:
            return step(state, self._client(site))
        except _PROVIDER_TROUBLES as error:
            return f"{state.job.backend} could not be asked about its batch: {error}"
        except _OUR_TROUBLES as error:
            return f"the batch of {state.job.backend} could not be collected: {error}"

    def _client(self, site: Site) -> BatchClient:
        if site.name not in self._clients:
            client = self._clients[site.name] = self._client_of(site)
            self._closers.callback(client.close)
        return self._clients[site.name]

    def _step(self, state: JobState, client: BatchClient) -> str:
        try:
            if state.provider_batch_id is None:
                return self._send(state, client)
            return self._poll(state, client, state.provider_batch_id)
        except _PROVIDER_TROUBLES:
            if not self._is_abandoned(state):
                raise
            return self._abandon(state)

    def _send(self, state: JobState, client: BatchClient) -> str:
        if not state.job.sent:
            return self._finish(state, None, not_worked_on("failed"), "shared")
        known = {s.provider_batch_id for s in read_jobs(self._store, ended=True) if s.provider_batch_id}
        late = self._clock.now() >= state.deadline(self._deadline_h)
        sent = Sender(self._store, self._clock.now()).proceed(state, client, known, late=late)
        if sent.word == "refused":
            self._finish(state, None, not_worked_on("failed", sent.sentence), "refused")
        elif sent.word == "later" and self._is_abandoned(state):
            return self._abandon(state)
        return sent.sentence

    def _poll(self, state: JobState, client: BatchClient, batch_id: str) -> str:
        job, standing = state.job, client.standing(batch_id)
        if standing.ended:
            otherwise = (
                no_line(self._sites[job.backend].backend.provider)
                if standing.missing is None
                else not_worked_on(standing.missing, standing.message)
            )
            with Spool(job.requests) as spool:
                for line in client.results(batch_id):
                    spool.put(job.index_of(line.custom_id), line.result)
                if spool.is_empty and standing.missing is None and not standing.may_be_empty:
                    raise BatchLostError(f"batch {batch_id} has ended and gives no results")
                return self._finish(state, spool, otherwise, standing.status)
        if self._is_abandoned(state):
            return self._abandon(state)
        if self._clock.now() >= state.deadline(self._deadline_h) and state.cancelled_at is None:
            client.cancel(batch_id)
            write_record(self._store, job.tag, "cancelled", at=self._clock.now().isoformat())
            return f"batch {batch_id} of {job.backend} has passed its deadline and was cancelled"
        return f"batch {batch_id} of {job.backend} is not done yet (status {standing.status!r})"

    def _awaits_leaders(self, job: Job) -> bool:
        """Whether requests of other jobs are not done yet whose answers this one's share."""
        own = {(part.batch_id, part.number) for part in job.tickets}
        others = {(r.batch_id, r.number) for r in job.repeats} - own
        return any(is_open(self._store, batch_id, number) for batch_id, number in others)

    def _is_abandoned(self, state: JobState) -> bool:
        return self._clock.now() >= state.deadline(self._deadline_h) + timedelta(hours=ABANDON_AFTER_H)

    def _abandon(self, state: JobState) -> str:
        lost = CallFailure(
            FailureClass.TIMEOUT, "its provider batch never came to an end; it may be billed", ambiguous=True
        )
        return self._finish(state, None, lost, "abandoned")

    def _finish(self, state: JobState, spool: Spool | None, otherwise: CallFailure, status: str) -> str:
        """Record every end, close the tickets, and only then the job."""
        job = state.job
        if self._awaits_leaders(job):
            name = state.provider_batch_id or job.tag
            return f"batch {name} of {job.backend} shares answers of another that is not done"
        ends = self._collector.collect(state, spool, otherwise)
        strangers, repeated = (spool.strangers, spool.repeated) if spool is not None else (0, 0)
        write_record(
            self._store,
            job.tag,
            "ended",
            at=self._clock.now().isoformat(),
            status=status,
            ends=dict(ends),
            strangers=strangers,
            repeated=repeated,
        )
        odd = f"; {strangers} lines of unknown ids and {repeated} repeated ones were ignored"
        return (
            f"batch {state.provider_batch_id or job.tag} of {job.backend} has ended ({status}): "
            f"{ends['answered']:,} answered, {ends['failed']:,} failed, {ends['unknown']:,} of unknown end"
            + (f", {ends['shared']:,} share another's answer" if ends["shared"] else "")
            + (odd if strangers or repeated else "")
        )


def open_provider_batches(
    workload: Workload, run: RunContext, *, environ: Mapping[str, str] | None = None
) -> ProviderBatches | None:
    """The provider batches of a run's output; None when neither workload nor output has any.

    A rehearsal has none: there, backends in batch mode are answered online at the batch price.

    Raises:
        MissingSecretError: a key is not set.
        ConfigurationError: a base_url that can't be used.
    """
    store = open_store(run.output)
    wanted = any(backend.mode == "batch" for backend in workload.hosted_backends().values())
    if run.rehearsal or not (wanted or next(iter(store.list(FOLDER)), None)):
        return None
    clock = SystemClock()
    places = served_places(workload, os.environ if environ is None else environ)
    sites = build_sites(served_backends(workload), places, clock, PriceBook(), rehearsal=False)
    ledgers = open_ledgers(store)
    batches = ProviderBatches(
        store,
        ledgers,
        sites,
        workload.limits.batch_deadline_h,
        clock,
        lambda site: open_client(site, places),
        share=workload.limits.share_identical,
    )
    batches._closers.callback(ledgers.close)
    return batches


def served_backends(workload: Workload) -> dict[str, HostedBackend]:
    """The backends that a provider's batch API can serve, in whatever mode they are now."""
    return {name: backend for name, backend in workload.hosted_backends().items() if backend.has_batches}


def served_places(workload: Workload, environ: Mapping[str, str]) -> dict[str, Place]:
    """Where the served backends are, with their keys; see `open_provider_batches` for what is raised."""
    return {
        name: place_of(
            name,
            base_url_of(backend),
            None if backend.platform == "vertex" else read_key(name, backend, environ),
        )
        for name, backend in served_backends(workload).items()
    }


def open_client(
    site: Site,
    places: Mapping[str, Place],
    *,
    credentials: Callable[[], Any] = google_credentials,
    open_bucket: Callable[[str], Store] = open_store,
) -> BatchClient:
    """The batch API of a backend. `credentials` and `open_bucket` are for Vertex."""
    place, backend = places[site.name], site.backend
    if backend.batch_bucket is not None:
        return VertexBatches(place, backend, credentials(), open_bucket(backend.batch_bucket))
    if backend.provider == "anthropic":
        return AnthropicBatches(place)
    return GeminiBatches(place, backend) if backend.provider == "gemini" else OpenAIBatches(place, backend)


def collect_batches(workload: Workload, run: RunContext) -> list[str]:
    """Collect what has come back; what there is to say about it. The first step of a run."""
    batches = open_provider_batches(workload, run)
    if batches is None:
        return []
    with batches:
        return batches.collect()


def submit_batches(workload: Workload, run: RunContext) -> list[str]:
    """Submit what workers have left; what there is to say about it. The last step before settling."""
    batches = open_provider_batches(workload, run)
    if batches is None:
        return []
    with batches:
        return batches.submit()
