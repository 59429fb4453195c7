"""Prompt caching: which part of a request is worth marking, and one request that goes ahead to fill it.

Source of minimum lengths, lifetime and multipliers: Anthropic's page "Prompt caching" (2026-11): a
write costs 1.25 times the input price, a read 0.1 times; an entry lives 5 minutes from its last use
and can be read once the response that writes it has begun; what is shorter than the model's minimum
is not cached, and costs nothing more for being marked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from schemas.backends import HostedBackend
from transforms.call.ports import Clock
from transforms.call.request import CallRequest

LIFETIME_S = 300.0
_SAFE_LIFETIME_S = 0.9 * LIFETIME_S
_LEAST_TOKENS = (
    # the first name that the model's contains decides
    ("haiku-4-5", 4096),
    ("opus-4-5", 4096),
    ("opus-4-6", 4096),
    ("haiku-3", 2048),
    ("3-haiku", 2048),
    ("3-5-haiku", 2048),
)
_LEAST_OF_OTHERS = 1024
# About four characters a token in English; a text that may just reach the minimum is marked all the same.
_FEWEST_CHARACTERS_PER_TOKEN = 3
_COMPARED_CHARACTERS = 4096  # no provider caches a prefix of fewer tokens than a quarter of this

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prefix:
    """What several requests begin with: the system text and so many characters of the prompt."""

    model: str
    system: str
    prompt_head: str

    @property
    def of_prompt(self) -> int:
        """Characters of the prompt; 0 when the system text alone is shared."""
        return len(self.prompt_head)


def least_cached_tokens(model: str) -> int:
    """The shortest prefix that the model caches, in tokens."""
    return next((tokens for name, tokens in _LEAST_TOKENS if name in model), _LEAST_OF_OTHERS)


def cached_prefix(backend: HostedBackend, request: CallRequest) -> Prefix | None:
    """What of a request is to be cached; None when nothing is shared, or too little.

    `request.shared` is None in a batch with a single document of the route: writing to the cache for
    nobody would only cost more.
    """
    if backend.provider != "anthropic" or backend.prompt_caching == "off" or request.shared is None:
        return None
    head = request.prompt[: request.shared]
    rest = request.prompt[request.shared :]
    if not head.strip() or not rest.strip():  # blank blocks are refused
        head = ""
    characters = len(request.system) + len(head)
    if characters < _FEWEST_CHARACTERS_PER_TOKEN * least_cached_tokens(backend.model):
        return None
    return Prefix(backend.model, request.system, head) if head or request.system else None


class PrefixGate:
    """Lets one request of a prefix go ahead of the others, which then read what it wrote.

    Otherwise all that start together would each pay for the write. Nobody waits for more than one
    call: when the one ahead gets no answer, the others go, too. Used on one event loop.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open_until: dict[Hashable, float] = {}
        self._ahead: dict[Hashable, asyncio.Future[None]] = {}

    async def enter(self, prefix: Hashable) -> bool:
        """Returns when the request may go; True when it is the one ahead, which has to `leave`."""
        if self._clock.monotonic() < self._open_until.get(prefix, 0.0):
            return False
        ahead = self._ahead.get(prefix)
        if ahead is not None:
            await asyncio.shield(ahead)  # whoever is cancelled while waiting must not end it for the others
            return False
        self._ahead[prefix] = asyncio.get_running_loop().create_future()
        return True

    def leave(self, prefix: Hashable, *, ahead: bool, answered: bool) -> None:
        """The request has ended. An answer has filled or refreshed the cache entry."""
        if answered:
            self._open_until[prefix] = self._clock.monotonic() + _SAFE_LIFETIME_S
        if ahead:
            self._ahead.pop(prefix).set_result(None)


def by_shared_prefix(numbered: Iterable[tuple[T, CallRequest]]) -> list[tuple[T, CallRequest]]:
    """Requests with a common beginning next to each other, otherwise in the order given.

    So that they meet while a cache entry lives, at providers that cache by themselves, too.
    """
    groups: dict[tuple[int, int], list[tuple[T, CallRequest]]] = {}
    for number, request in numbered:
        # hashes, so that a batch's prompts are not held twice; a collision costs an odd order
        key = (hash(request.system), hash(request.prompt[:_COMPARED_CHARACTERS]))
        groups.setdefault(key, []).append((number, request))
    return [entry for group in groups.values() for entry in group]
