"""Vertex: where Google Cloud serves models, and the tokens that it takes instead of keys.

Source of hosts and paths: the REST reference of `publishers.models` and what the official SDKs
(google-genai 2.34, anthropic 2.12) call; the tests compare with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol
from urllib.parse import quote

from schemas.backends import HostedBackend
from schemas.errors import MissingSecretError
from transforms.call.secret import Secret

_VERSIONS = {"gemini": "v1beta1", "anthropic": "v1"}
_MULTI_REGIONS = frozenset({"us", "eu"})
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
REFRESH_BEFORE_S = 300.0
"""A token is replaced so long before it ends: longer than the longest call that starts with it."""

REGIONAL_PREMIUM = Decimal("1.1")
"""What Claude costs at regional and multi-region endpoints, beside the global one.

Source: Anthropic's documentation, "Claude on Vertex AI", section "Global, multi-region, and regional
endpoints": 10 % for Claude Sonnet 4.5 and all later models; older ones keep their prices.
"""
_WITHOUT_PREMIUM = ("claude-3", "claude-opus-4@", "claude-opus-4-1@", "claude-sonnet-4@")


def vertex_base_url(backend: HostedBackend) -> str:
    """The address of the backend's location, down to the API's version."""
    location, version = backend.location, _VERSIONS[backend.provider]
    if location == "global":
        return f"https://aiplatform.googleapis.com/{version}"
    if location in _MULTI_REGIONS:
        return f"https://aiplatform.{location}.rep.googleapis.com/{version}"
    return f"https://{location}-aiplatform.googleapis.com/{version}"


def publisher_path(backend: HostedBackend, publisher: str) -> str:
    """Path of a publisher's model below the base URL, without the method."""
    model = quote(backend.model, safe="@")
    return f"/projects/{backend.project}/locations/{backend.location}/publishers/{publisher}/models/{model}"


def price_factor(backend: HostedBackend) -> Decimal:
    """What the backend's prices are multiplied with: the regional premium, or 1."""
    regional = backend.platform == "vertex" and backend.location != "global"
    is_older = f"{backend.model}@".startswith(_WITHOUT_PREMIUM)
    premium = regional and backend.provider == "anthropic" and not is_older
    return REGIONAL_PREMIUM if premium else Decimal(1)


class TokenError(Exception):
    """No token is to be had; says why in a sentence, and carries none."""


class TokenSource(Protocol):
    """Where tokens come from."""

    async def token(self) -> Secret:
        """A token that is good for the next minutes.

        Raises:
            TokenError: there is none.
        """
        ...


class GoogleTokens:
    """Tokens of Google's application default credentials, refreshed before they end.

    One refresh at a time, in a thread of its own; a failed one is not repeated for RETRY_AFTER_S, so
    that thousands of documents don't ask each. Used on one event loop.
    """

    RETRY_AFTER_S = 10.0

    def __init__(
        self,
        credentials: Any,
        refresh: Callable[[Any], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._credentials = credentials
        self._refresh = refresh
        self._now = now
        self._secret: Secret | None = None
        self._good_until: datetime | None = None
        self._failed: tuple[datetime, str] | None = None
        self._lock = asyncio.Lock()

    async def token(self) -> Secret:
        """A token that is good for the next minutes; TokenError when there is none."""
        if self._is_good():
            assert self._secret is not None
            return self._secret
        async with self._lock:
            if not self._is_good():
                await self._renew()
        assert self._secret is not None
        return self._secret

    def _is_good(self) -> bool:
        return self._secret is not None and (self._good_until is None or self._now() < self._good_until)

    async def _renew(self) -> None:
        if self._failed is not None and (self._now() - self._failed[0]).total_seconds() < self.RETRY_AFTER_S:
            raise TokenError(self._failed[1])
        why = ""
        try:
            await asyncio.to_thread(self._refresh, self._credentials)
        except Exception as error:  # what google-auth raises may hold the response, tokens among it
            why = type(error).__name__
        token = self._credentials.token
        if why or not token:
            message = (
                f"no access token for Vertex ({why or 'none was given'}): renew the application default "
                f"credentials (gcloud auth application-default login) or mend the service account"
            )
            self._failed = (self._now(), message)
            raise TokenError(message)
        self._failed = None
        self._secret = Secret(token)
        self._good_until = _good_until(self._credentials.expiry)


def _good_until(expiry: datetime | None) -> datetime | None:
    """google-auth gives the expiry as naive UTC; None never ends."""
    if expiry is None:
        return None
    return datetime.fromtimestamp(expiry.replace(tzinfo=UTC).timestamp() - REFRESH_BEFORE_S, UTC)


def google_tokens() -> GoogleTokens:
    """Tokens of this machine's application default credentials; see `google_credentials`."""
    import google.auth.transport.requests

    request = google.auth.transport.requests.Request()
    return GoogleTokens(google_credentials(), lambda held: held.refresh(request))


def google_credentials() -> Any:
    """This machine's application default credentials, for Vertex.

    Raises:
        MissingSecretError: there are none. Where no metadata server answers, finding that out takes
            some seconds.
    """
    import google.auth
    import google.auth.exceptions

    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
    except google.auth.exceptions.GoogleAuthError:
        raise MissingSecretError(
            'a backend with platform = "vertex" needs application default credentials, and there are none: '
            "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS to a service "
            "account's file, or rehearse the run without keys and costs with --rehearsal"
        ) from None
    return credentials
