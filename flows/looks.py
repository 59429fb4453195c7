"""What the steps of one run look at: its input and its output are read once, by the first that needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from flows.groups import default_groups
from schemas.load import LoadedWorkload
from schemas.run import RunContext
from transforms.check import CheckReport, check_workload
from transforms.files import find_input
from transforms.plan import Plan, find_work, freeze_plan
from transforms.quote.build import quote_workload
from transforms.quote.carry import quote_to_hold
from transforms.quote.compare import store_quote
from transforms.quote.ground import UNSEEN, Seen
from transforms.store import open_store


class Looks:
    """Checks, plans and quotes a run, in this order, each with what the ones before have seen.

    A check looks anew; nothing is kept after a quote. Workers notice by themselves what changes later.
    """

    def __init__(self) -> None:
        self._seen = UNSEEN

    def check(self, loaded: LoadedWorkload) -> CheckReport:
        """See `transforms.check.check_workload`."""
        self._seen = Seen(find_input(loaded.input_uri, loaded.workload.input))
        return check_workload(loaded, found=self._seen.found)

    def plan(self, loaded: LoadedWorkload, run: RunContext, classes: Sequence[str]) -> Plan:
        """See `transforms.plan.plan_run`."""
        work = find_work(loaded, run, tuple(classes), self._seen.found)
        self._seen = Seen(work.found, work)
        return freeze_plan(loaded, run, work)

    def quote(self, loaded: LoadedWorkload, run: RunContext, classes: Sequence[str]) -> None:
        """Quote what the run has to do, and keep it with the run."""
        seen, self._seen = self._seen, UNSEEN
        store = open_store(run.output)
        quote = quote_workload(
            loaded,
            datetime.now(UTC),
            retry_classes=tuple(classes),
            only_batches=run.only_batches,
            grouping=default_groups,
            seen=seen,
        )
        quote = replace(quote, workload_sha256=run.workload_sha256)  # a decision makes no other version
        store_quote(store, run.run_id, quote_to_hold(store, run.run_id, quote))
