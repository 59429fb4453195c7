"""A backend made ready to be called: codec, address, key, lane, price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from schemas.errors import ConfigurationError
from schemas.outcomes import ZERO, Assignment, Charge
from schemas.workload import HostedBackend
from transforms.call.address import Address, parse_base_url
from transforms.call.anthropic import AnthropicCodec
from transforms.call.lane import Lane, LaneKey
from transforms.call.openai import OpenAICodec
from transforms.call.ports import Clock
from transforms.call.request import CallRequest
from transforms.call.secret import Secret, key_variable
from transforms.call.wire import Answer, Codec, EncodedRequest, encode
from transforms.price import PriceBook

CODECS: dict[str, Codec] = {codec.name: codec for codec in (AnthropicCodec(), OpenAICodec())}

OVERHEAD_TOKENS = 512
"""Tokens that a provider may add around the texts: roles, separators, its structured-output preamble."""


@dataclass(frozen=True, slots=True)
class Site:
    """One backend, ready. `rehearsal` changes what is billed (nothing), not what is counted."""

    name: str
    backend: HostedBackend
    codec: Codec
    base_url: str
    key: Secret | None
    lane: Lane
    prices: PriceBook
    rehearsal: bool

    @property
    def mode(self) -> str:
        """What kind of calls these are; part of every request's digest."""
        return "rehearsal" if self.rehearsal else "live"

    def encode(self, request: CallRequest) -> EncodedRequest:
        """The request on this backend's wire; ValueError when a text can't be written as JSON."""
        return encode(self.codec, self.backend, request, self.base_url, self.mode)

    def worst_case(self, encoded: EncodedRequest, at: datetime) -> Decimal | None:
        """The most that the call can cost; None when the model has no price.

        A token is at least one UTF-8 byte, so the bytes sent (texts, schema, parameters) bound the
        tokens from above, with OVERHEAD_TOKENS for what the provider adds.
        """
        bound = len(encoded.wire.body) + OVERHEAD_TOKENS
        return self.prices.worst_case(self.backend, bound, self.backend.max_output_tokens, at)

    def charge(self, answer: Answer, at: datetime) -> Charge:
        """What the answer costs: billed, or in a rehearsal zero with the list price beside it."""
        backend = self.backend
        charge = self.prices.price(
            backend.provider,
            backend.model,
            answer.usage,
            at,
            context=answer.price_context,
            own=backend.price,
            estimated=backend.base_url is not None,
        )
        return replace(charge, amount=ZERO, basis="rehearsal") if self.rehearsal else charge


@dataclass(frozen=True, slots=True)
class Place:
    """Where a backend's calls go, and with which key."""

    base_url: str
    address: Address
    key: Secret | None


def place_of(name: str, base_url: str, key: Secret | None) -> Place:
    """The place behind a base URL; ConfigurationError when it is none that may be called."""
    url, address = parse_base_url(name, base_url)
    return Place(url, address, key)


def build_sites(
    backends: Mapping[str, HostedBackend],
    places: Mapping[str, Place],
    clock: Clock,
    prices: PriceBook,
    rehearsal: bool,
) -> dict[str, Site]:
    """The sites of all backends; those with the same provider, address, model and key share a lane."""
    lanes: dict[LaneKey, Lane] = {}
    sites: dict[str, Site] = {}
    for name, backend in backends.items():
        place = places[name]
        key = LaneKey(backend.provider, place.base_url, backend.model, key_variable(backend))
        lane = lanes.setdefault(key, Lane(key, backend.max_in_flight, clock))
        lane.limit = min(lane.limit, backend.max_in_flight)
        codec = CODECS[backend.provider]
        sites[name] = Site(name, backend, codec, place.base_url, place.key, lane, prices, rehearsal)
    return sites


def check_parameters(
    backends: Mapping[str, HostedBackend], json_schemas: Sequence[dict[str, Any] | None]
) -> None:
    """Encodes a trial request per backend, so that a parameter that can't be sent is found at the start.

    Raises:
        ConfigurationError: a parameter clashes with a key of ours, or can't be written as JSON.
    """
    trial = Assignment(row=0, route="trial", rule="", chain=(), document_id=None)
    for name, backend in backends.items():
        for schema in (None, *json_schemas):
            request = CallRequest(trial, "system", "prompt", schema, "", "")
            try:
                encode(CODECS[backend.provider], backend, request, "https://example.invalid", "live")
            except ValueError as error:
                raise ConfigurationError(f"backends.{name}.parameters: {error}") from None
            except ConfigurationError as error:
                raise ConfigurationError(f"backends.{name}: {error}") from None
