"""Defects of the further caps: tokens, routes, and a cost centre's month."""

from __future__ import annotations

from contextlib import ExitStack
from decimal import Decimal
from typing import Any

from schemas.outcomes import ZERO
from tests.simulator.planting import defect, swap
from transforms import spend
from transforms.call import one_call
from transforms.call.caps import Caps, Refusal
from transforms.call.centre import CentreState, Recovery

CAP = "spend never passes the cap"
LEASES = "leases never pass the cap"
REFUSED = "the budget is refused only when it is used up"
FINISHES = "the same command finishes the job"


@defect("caps", CAP)
def a_routes_cap_does_not_hold_for_its_route(replaced: ExitStack) -> None:
    def members(self: Caps, route: str) -> Any:
        return [(spec, budget) for spec, budget in before(self, route) if spec.route is None]

    before = swap(replaced, Caps, "_for", members)


@defect("caps", CAP)
def a_call_without_a_known_end_used_no_tokens(replaced: ExitStack) -> None:
    def tokens(result: Any, need: Any) -> int:
        return 0 if getattr(result, "ambiguous", False) else before(result, need)

    before = swap(replaced, one_call, "_tokens_of", tokens)


@defect("caps", CAP)
def a_new_run_gives_routes_and_tokens_anew(replaced: ExitStack) -> None:
    def start(output: str, workload: Any, spent: dict[str, Decimal], *more: Any) -> Any:
        return before(output, workload, dict.fromkeys(spent, ZERO), *more)

    before = swap(replaced, spend, "start_cap_records", start)


@defect("caps", REFUSED, FINISHES, "no row waits for ever")
def who_is_refused_by_one_cap_keeps_what_others_gave(replaced: ExitStack) -> None:
    async def reserve(self: Caps, need: Any) -> Refusal | None:
        for spec, budget in self._for(need.route):
            if not await budget.reserve(spec.of(need)):
                return Refusal(spec.name, spec.of(need), budget.sentence)
        return None

    swap(replaced, Caps, "reserve", reserve)


@defect("caps", CAP)
def what_crashed_workers_spent_of_a_cost_centre_is_forgotten(replaced: ExitStack) -> None:
    def of(self: Recovery, state: CentreState, boot_id: str) -> Decimal:
        before(self, state, boot_id)
        self.unreported = ZERO
        return ZERO

    before = swap(replaced, Recovery, "of", of)


@defect("caps", CAP, LEASES)
def a_cost_centre_counts_one_output_alone(replaced: ExitStack) -> None:
    def spent(self: CentreState) -> Decimal:
        return self.outputs[self.me].spent if self.me in self.outputs else ZERO

    swap(replaced, CentreState, "spent", property(spent))
