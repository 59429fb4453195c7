"""Which documents go to which backends, how hosted models are asked there, and what may go nowhere."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from schemas.sections import Name, Section


class Prompt(Section):
    """How a hosted model is asked: a sandboxed Jinja template over the row's columns."""

    template: str = Field(
        min_length=1, description="Jinja template; columns are its variables, and a null is no text"
    )
    system: str = Field("", description="system text, the same for every document")
    json_schema: dict[str, Any] | None = Field(
        None, description="JSON Schema of the answer; its properties become the typed `output` column"
    )
    repair: bool = Field(
        True,
        description="whether an answer that does not fit `json_schema` is sent back once, with what is wrong "
        "in it; both answers are paid",
    )


class Split(Section):
    """One arm of a weighted split: which chain of backends, for which share of the documents."""

    weight: int = Field(ge=1, le=1_000_000, description="share of the documents, relative to the other arms")
    backends: tuple[str, ...] = Field(min_length=1, description="ordered chain of backends")


class Route(Section):
    """A named rule, and the ordered chain of backends that its documents go to."""

    name: Name = Field(description="stands in the output's paths and in `lineage.route`")
    when: str = Field("TRUE", min_length=1, description="SQL expression over the input columns")
    backends: tuple[str, ...] = Field((), description="ordered chain: the next is tried when one fails")
    split: tuple[Split, ...] = Field((), description="weighted chains instead of one, by hash of the id")
    prompt: str | None = Field(None, description="name of a prompt; hosted routes need one")
    share: int = Field(
        1, ge=1, le=1000, description="weight among routes that wait for the same provider, model and key"
    )

    @property
    def chains(self) -> tuple[Split, ...]:
        """The route's chains with their weights; a plain chain is a split with one arm."""
        return self.split or (Split(weight=1, backends=self.backends),)

    @model_validator(mode="after")
    def _one_kind_of_chain(self) -> Route:
        if bool(self.backends) == bool(self.split):
            raise ValueError("give either `backends` or `split`")
        return self


class Rejection(Section):
    """A rule that keeps documents from being sent."""

    name: Name = Field(description="stands in the failure's message")
    when: str = Field(min_length=1, description="SQL expression; documents for which it is true are rejected")
    reason: str = Field(min_length=1, description="stands in the failure row")
    routes: tuple[str, ...] = Field((), description="for these routes only; default: for all")


class Policy(Section):
    """What may go where. Checked before anything leaves the process."""

    reject: tuple[Rejection, ...] = Field((), description="see below")
    allowed_providers: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="route → providers; a route that is not named allows all"
    )
