"""What a run may cost at most, and when it waits for a person's word."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import Field, model_validator

from schemas.sections import Amount, Name, Section


class RouteBudget(Section):
    """What one route may cost at most, over all attempts."""

    amount: Amount | None = Field(None, description="a cap on the route's hosted calls")
    tokens: int | None = Field(None, ge=0, description="a cap on their input and output tokens together")


class Budget(Section):
    """What the run may cost at most, over all its attempts."""

    amount: Amount | None = Field(None, description="the cap; none: no cap")
    tokens: int | None = Field(None, ge=0, description="a cap on input and output tokens together")
    routes: dict[Name, RouteBudget] = Field(default_factory=dict, description="caps by route; see below")
    soft_amount: Amount | None = Field(
        None, description="from here on the run warns, in progress, status and manifest; it goes on"
    )
    soft_fraction: float | None = Field(
        None, gt=0, le=1, description="the same as a part of `amount`, 0 to 1; give one of the two"
    )
    cost_centre: Name | None = Field(
        None, description="who pays: runs of the same cost centre share a cap per month (UTC)"
    )
    cost_centre_amount: Amount | None = Field(
        None, description="that cap, in a month, of this workload's runs"
    )
    cost_centre_folder: str | None = Field(
        None, description="folder of the records that they share; relative to the workload file"
    )
    currency: Literal["USD"] = Field("USD", description="ISO 4217")
    on_unknown_price: Literal["refuse", "allow"] = Field(
        "refuse", description="what to do with a hosted model that has no price, when there is a cap"
    )

    @property
    def soft(self) -> Decimal | None:
        """The amount from which on the run warns."""
        if self.soft_fraction is not None and self.amount is not None:
            return self.amount * Decimal(str(self.soft_fraction))
        return self.soft_amount

    @property
    def caps_money(self) -> bool:
        """Whether any cap is in money, so that a call without a known price can't be held by it."""
        by_route = any(route.amount is not None for route in self.routes.values())
        return self.amount is not None or self.cost_centre is not None or by_route

    @model_validator(mode="after")
    def _complete(self) -> Budget:
        centre = (self.cost_centre, self.cost_centre_amount, self.cost_centre_folder)
        if None in centre and centre != (None, None, None):
            raise ValueError("`cost_centre`, `cost_centre_amount` and `cost_centre_folder` go together")
        if self.soft_amount is not None and self.soft_fraction is not None:
            raise ValueError("give either `soft_amount` or `soft_fraction`")
        if self.soft_fraction is not None and self.amount is None:
            raise ValueError("`soft_fraction` is a part of `amount`: give that as well")
        return self


class Review(Section):
    """When a run waits until a person has approved it. Rehearsals never wait: nothing is paid."""

    quote_above: Amount | None = Field(
        None,
        description="a run whose quote is likely to pass this (USD), or has no price, waits before it sends",
    )
    soft_budget: bool = Field(
        False, description="at the soft budget the run stops and waits, instead of only warning"
    )
    routes: tuple[str, ...] = Field(
        (), description="a run that would send documents on one of these hosted routes waits before it sends"
    )
    wait_h: float = Field(
        168.0, gt=0, le=8760, description="how long a run waits for an answer; then it fails"
    )
