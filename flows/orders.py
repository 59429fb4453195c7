"""What a run is told to do: what a form or a command line says, and what somebody has decided since."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal

from flows.parameters import EnrichParameters
from schemas.changes import hosted_chat_routes
from schemas.errors import ConfigurationError
from schemas.load import LoadedWorkload
from schemas.workload import Workload


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's decision about a run, as texts: what was decided, over what, by whom, why."""

    decision: str
    what: str
    by: str
    reason: str
    at: str
    up_to: str = ""

    def to_dict(self) -> dict[str, str]:
        """As it stands in the manifest."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Order:
    """What a run is told to do.

    `backend` takes the documents of `backend_routes` (empty: of all routes that allow it) instead of their
    chains. `only_batches` are beginnings of batch ids. `reviewed` are the kinds of review that are over.
    """

    parameters: EnrichParameters
    skip_routes: tuple[str, ...] = ()
    backend: str | None = None
    backend_routes: tuple[str, ...] = ()
    only_batches: tuple[str, ...] = ()
    approvals: tuple[Approval, ...] = ()
    reviewed: frozenset[str] = frozenset()

    @property
    def is_approved(self) -> bool:
        """Whether whoever started the run has approved it in the same breath."""
        return bool(self.parameters.approved_by)

    def cap(self, workload: Workload) -> Decimal | None:
        """The cap that holds for this run instead of `budget.amount`; None for that one.

        A run that is to stop at its soft budget and ask has that for a cap until somebody has decided.
        """
        if self.parameters.budget is not None:
            return self.parameters.budget
        return workload.budget.soft if self.asks_at_soft_budget(workload) else None

    def asks_at_soft_budget(self, workload: Workload) -> bool:
        """Whether the run stops at the soft budget."""
        decided = self.parameters.budget is not None or self.is_approved or "soft" in self.reviewed
        return workload.review.soft_budget and not self.parameters.rehearsal and not decided

    def reroute(self, workload: Workload) -> dict[str, str]:
        """The other backend by route.

        Raises:
            ConfigurationError: no route allows it.
        """
        if self.backend is None:
            return {}
        if self.backend_routes:
            return dict.fromkeys(self.backend_routes, self.backend)
        backend = workload.backends.get(self.backend)
        policy = workload.policy.allowed_providers
        routes = [
            name
            for name in hosted_chat_routes(workload)
            if backend is None or name not in policy or backend.provider in policy[name]
        ]
        if not routes:
            raise ConfigurationError(
                f"backend {self.backend!r} may not take any route's documents: see policy.allowed_providers"
            )
        return dict.fromkeys(routes, self.backend)

    def decided(self, kind: str, approval: Approval, up_to: Decimal | None, skip: tuple[str, ...]) -> Order:
        """The order after a decision that lets the run go on."""
        budget = self.parameters.budget if up_to is None else up_to
        return replace(
            self,
            parameters=self.parameters.model_copy(update={"budget": budget}),
            skip_routes=tuple(dict.fromkeys((*self.skip_routes, *skip))),
            approvals=(*self.approvals, approval),
            reviewed=self.reviewed | {kind},
        )

    def started(self, loaded: LoadedWorkload, at: str) -> Order:
        """The order with the approval that was given with it, if there was one."""
        if not self.is_approved:
            return self
        given = self.parameters
        cap = given.budget if given.budget is not None else loaded.workload.budget.amount
        approval = Approval(
            decision="approve",
            what="the run was started with it",
            by=given.approved_by,
            reason=given.reason,
            at=at,
            up_to="" if cap is None else str(cap),
        )
        return replace(self, approvals=(*self.approvals, approval))
