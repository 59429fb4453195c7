"""What the official SDKs have in common: no retries, no strange addresses, and errors without keys."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from schemas.failures import FailureClass
from transforms.batchmode.clients import BatchLostError, BatchRefusedError
from transforms.call.address import AllowList
from transforms.call.classify import classify_error
from transforms.call.secret import Secret
from transforms.call.site import Place
from transforms.call.wire import WireResponse

TIMEOUT_S = 600.0
"""Of a control call. Uploads and results are large, and nothing waits for them but the run's driver."""
CREATED_AT_SLACK_S = 3600.0
"""How far the provider's clock may be behind ours when its batches are looked through for one of ours."""

_LASTING = frozenset({FailureClass.BAD_REQUEST, FailureClass.REQUEST_TOO_LARGE})
_MAYBE_DONE = frozenset({408, 409})  # and everything from 500 on
T = TypeVar("T")


class AddressRefusedError(OSError):
    """A URL outside the backend's own address."""


@cache
def trusted() -> ssl.SSLContext:
    """The certificates that all clients of this process trust, which take 25 ms to read."""
    import httpx2

    return httpx2.create_ssl_context(trust_env=False)


def http_client(place: Place, checks: Sequence[Callable[[Any], None]] = ()) -> Any:
    """A client for `place` alone: follows no redirect, and reads no proxy from the environment.

    A provider's answer may name further URLs (of results): the key travels to none at another address.
    `checks` see every response first, and may raise ValueError.
    """
    import httpx2

    allowed = AllowList(frozenset({place.address}))

    def check(request: Any) -> None:
        if not allowed.allows_url(str(request.url)):
            raise AddressRefusedError(f"{request.url.host} is not the address of the backend")

    return httpx2.Client(
        follow_redirects=False,
        trust_env=False,
        verify=trusted(),
        timeout=TIMEOUT_S,
        event_hooks={"request": [check], "response": list(checks)},
    )


@dataclass(frozen=True, slots=True)
class Raised:
    """What an SDK raises: anything at all, an error response (as `.response`), no answer in time."""

    any: tuple[type[Exception], ...]
    status: type[Exception]
    timeout: type[Exception]


def raised_by(base: type[Exception], status: type[Exception], timeout: type[Exception]) -> Raised:
    """What an SDK raises: errors of its own, and while a response is still being read its transport's."""
    import httpx2

    return Raised((base, httpx2.HTTPError), status, timeout)


class Asker:
    """Asks through an SDK, and turns what it raises into errors of ours."""

    def __init__(self, provider: str, raised: Raised, key: Secret | None) -> None:
        self._provider = provider
        self._raised = raised
        self._key = key

    def ask(self, call: Callable[[], T]) -> T:
        """What `call` gives; it also reads what it needs from the response, which may be of any shape.

        Raises:
            BatchRefusedError: the provider definitely did not do it.
            BatchLostError: nobody knows.
        """
        # What an SDK raises holds the request, the key with it: it is left behind here, so that no
        # exception of ours has it as its context.
        try:
            return call()
        except Exception as caught:
            # SDKs check no response
            shapeless = (OSError, ValueError, TypeError, AttributeError, LookupError)
            if not isinstance(caught, (*self._raised.any, *shapeless)):
                raise
            error = self._translated(caught)
        raise error

    def each(self, start: Callable[[], Any]) -> Iterator[Any]:
        """What the iterable that `start` gives has; see `ask` for what is raised."""
        iterator = self.ask(lambda: iter(start()))
        while True:
            item = self.ask(lambda: next(iterator, None))
            if item is None:
                return
            yield item

    def listed(self, start: Callable[[], Any]) -> Iterator[Any]:
        """Everything on the pages of a list; see `ask` for what is raised.

        A page that holds no list is no answer: to take it for an empty one would be to believe that a
        batch was never made.
        """
        page = self.ask(lambda: _page(start()))
        while True:
            yield from page.data
            if not self.ask(page.has_next_page):
                return
            page = self.ask(lambda page=page: _page(page.get_next_page()))  # type: ignore[misc]

    def _translated(self, error: Any) -> BatchRefusedError | BatchLostError:
        if isinstance(error, self._raised.status):
            return self._status(error)
        if _never_sent(error):
            return BatchRefusedError(
                FailureClass.CONNECTION, f"{self._provider}: no connection; nothing was sent", lasting=False
            )
        if isinstance(error, self._raised.timeout):
            return BatchLostError(f"{self._provider}: no whole answer within {TIMEOUT_S:g} s")
        return BatchLostError(f"{self._provider}: no usable answer ({type(error).__name__})")

    def _status(self, error: Any) -> BatchRefusedError | BatchLostError:
        status, body = error.response.status_code, error.response.content
        failure = classify_error(self._provider, WireResponse(status, {}, body))
        message = failure.message if self._key is None else self._key.mask_text(failure.message)
        if status in _MAYBE_DONE or status >= 500:
            return BatchLostError(message)
        return BatchRefusedError(failure.failure, message, lasting=failure.failure in _LASTING)


def _page(page: Any) -> Any:
    if not isinstance(page.data, list):
        raise ValueError("no list")
    return page


def _never_sent(error: BaseException) -> bool:
    """Whether the connection was never there, or the address was refused by us."""
    import httpx2

    causes = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol, AddressRefusedError)
    return isinstance(error, causes) or isinstance(error.__cause__, causes)


def id_of(thing: Any) -> str:
    """The id of a batch or file that an SDK gave; ValueError when it has none."""
    if not isinstance(thing.id, str) or not thing.id:
        raise ValueError("no id")
    return thing.id
