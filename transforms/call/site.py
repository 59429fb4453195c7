"""A backend made ready to be called: codec, address, key, lane, price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any
from urllib.parse import urlsplit

from schemas.backends import HostedBackend
from schemas.errors import ConfigurationError
from schemas.outcomes import MONEY_SCALE, ZERO, Assignment, Charge, money
from transforms.call.address import Address, parse_base_url
from transforms.call.caching import PrefixGate
from transforms.call.codecs import CODECS as CODECS  # noqa: PLC0414 - others have it from here
from transforms.call.codecs import codec_of, default_base_url
from transforms.call.lane import Lane, LaneKey
from transforms.call.ports import Clock
from transforms.call.request import CallRequest
from transforms.call.secret import Secret, key_variable
from transforms.call.vertex import TokenSource, price_factor
from transforms.call.wire import Answer, Codec, EncodedRequest, encode
from transforms.price import PriceBook

OVERHEAD_TOKENS = 512
"""Tokens that a provider may add around the texts: roles, separators, its structured-output preamble."""


_ONE = Decimal(1)
_QUANTUM = _ONE.scaleb(-MONEY_SCALE)


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
    gate: PrefixGate
    tokens: TokenSource | None = None
    is_estimated: bool = False  # the price book's price may not be this server's

    @property
    def _factor(self) -> Decimal:
        return _ONE if self.backend.price else price_factor(self.backend)

    async def secret(self) -> Secret | None:
        """What the next call is authorised with; TokenError when no token is to be had."""
        return self.key if self.tokens is None else await self.tokens.token()

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
        tokens from above, with OVERHEAD_TOKENS for what the provider adds. Writing all of it to the
        prompt cache is covered.
        """
        bound = len(encoded.wire.body) + OVERHEAD_TOKENS
        most = 0 if self.backend.operation == "embeddings" else self.backend.max_output_tokens
        worst = self.prices.worst_case(self.backend, bound, most, at)
        if worst is None or self._factor == 1:
            return worst
        return (worst * self._factor).quantize(_QUANTUM, rounding=ROUND_CEILING)

    def worst_tokens(self, encoded: EncodedRequest) -> int:
        """The most tokens that the call can take, in and out; see `worst_case`."""
        most = 0 if self.backend.operation == "embeddings" else self.backend.max_output_tokens
        return len(encoded.wire.body) + OVERHEAD_TOKENS + most

    def charge(self, answer: Answer, at: datetime) -> Charge:
        """What the answer costs: billed, or in a rehearsal zero with the list price beside it."""
        backend = self.backend
        usage = answer.usage
        if backend.operation == "embeddings" and usage.output_tokens is None:
            usage = replace(usage, output_tokens=0)
        charge = self.prices.price(
            backend.provider,
            backend.model,
            usage,
            at,
            context=answer.price_context,
            own=backend.price,
            estimated=self.is_estimated,
        )
        factor = self._factor
        if factor != 1 and charge.list_amount is not None:
            amount = money(charge.list_amount * factor)
            charge = replace(charge, amount=amount, list_amount=amount)
        return replace(charge, amount=ZERO, basis="rehearsal") if self.rehearsal else charge


@dataclass(frozen=True, slots=True)
class Place:
    """Where a backend's calls go, and with which key."""

    base_url: str
    address: Address
    key: Secret | None
    tokens: TokenSource | None = None


def place_of(name: str, base_url: str, key: Secret | None, tokens: TokenSource | None = None) -> Place:
    """The place behind a base URL; ConfigurationError when it is none that may be called."""
    url, address = parse_base_url(name, base_url)
    return Place(url, address, key, tokens)


def is_at_list_price(backend: HostedBackend) -> bool:
    """Whether the price book's price is this backend's: at the provider's own address, and not on Vertex."""
    if backend.platform == "vertex":
        return False
    return (
        backend.base_url is None
        or urlsplit(backend.base_url).netloc == urlsplit(default_base_url(backend)).netloc
    )


def build_sites(
    backends: Mapping[str, HostedBackend],
    places: Mapping[str, Place],
    clock: Clock,
    prices: PriceBook,
    rehearsal: bool,
    shares: Mapping[str, int] | None = None,
    processes: int = 1,
) -> dict[str, Site]:
    """The sites of all backends; those with the same provider, address, model and key share a lane.

    `shares` are the weights of the routes that do. This process has its part of each backend's calls at a
    time: there are `processes` of them.
    """
    gate = PrefixGate(clock)
    lanes: dict[LaneKey, Lane] = {}
    sites: dict[str, Site] = {}
    for name, backend in backends.items():
        place = places[name]
        key = LaneKey(backend.provider, place.base_url, backend.model, _account(backend))
        limit = max(1, backend.max_in_flight // processes)
        lane = lanes.setdefault(key, Lane(key, limit, clock, shares))
        lane.limit = min(lane.limit, limit)
        for kind, stated in (
            ("requests", backend.requests_per_minute),
            ("tokens", backend.tokens_per_minute),
        ):
            if stated is not None:
                lane.state_limit(kind, stated / processes)
        codec = codec_of(backend)
        sites[name] = Site(
            name=name,
            backend=backend,
            codec=codec,
            base_url=place.base_url,
            key=place.key,
            lane=lane,
            prices=prices,
            rehearsal=rehearsal,
            gate=gate,
            tokens=place.tokens,
            is_estimated=not is_at_list_price(backend),
        )
    return sites


def _account(backend: HostedBackend) -> str:
    """Whose limits the calls count against."""
    return key_variable(backend) or f"{backend.project}/{backend.location}"


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
                encode(codec_of(backend), backend, request, "https://example.invalid", "live")
            except ValueError as error:
                raise ConfigurationError(f"backends.{name}.parameters: {error}") from None
            except ConfigurationError as error:
                raise ConfigurationError(f"backends.{name}: {error}") from None
