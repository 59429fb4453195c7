"""The client of Google Cloud Storage, and which of its errors are worth another try.

The library's own retries are off, except for the chunks of one resumable upload: whether an operation may
be tried again, and what it means when the second try fails, depends on what it does (see
`transforms.gcs.store`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import google.auth.exceptions
import requests.exceptions
import tenacity
from google.api_core import exceptions as api
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from requests.adapters import HTTPAdapter
from tenacity import stop_after_delay, wait_random_exponential

from schemas.errors import ConfigurationError, StoreError

EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"
PATIENCE_VARIABLE = "SWITCHGEAR_STORE_PATIENCE_S"
CONNECTIONS = 64
_TRANSIENT = (
    api.TooManyRequests,
    api.InternalServerError,
    api.BadGateway,
    api.ServiceUnavailable,
    api.GatewayTimeout,
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
    requests.exceptions.JSONDecodeError,
    google.auth.exceptions.TransportError,
    DataCorruption,
)
_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
# The two reasons for which the service keeps an object as it is, in its words:
# https://cloud.google.com/storage/docs/json_api/v1/status-codes
_KEPT = re.compile(r"retention policy|object retention|retentionPolicyNotMet|\bhold\b|objectUnderActiveHold")
_LONGEST = 300
T = TypeVar("T")


class ChecksumError(StoreError):
    """What came is not what was stored: tried again."""


class UploadRefusedError(ChecksumError):
    """What came to the service is not what was sent: nothing was stored, and it is sent again."""


class SessionLostError(StoreError):
    """The session of a resumable upload is of no more use, its end is not known: begun anew."""


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a moment later."""
    if isinstance(error, google.auth.exceptions.RefreshError):
        # Whoever renews credentials is out of reach (a machine's metadata server) or not well: not a refusal.
        return error.retryable or isinstance(error.__cause__, google.auth.exceptions.TransportError)
    if isinstance(error, InvalidResponse):
        return getattr(error.response, "status_code", None) in _TRANSIENT_STATUS
    if isinstance(error, api.GoogleAPICallError) and error.code in _TRANSIENT_STATUS:
        return True
    return isinstance(error, (*_TRANSIENT, ChecksumError, SessionLostError))


def is_refused(error: BaseException) -> bool:
    """Whether the service says that it has done nothing: it sheds load, or has refused the content."""
    return isinstance(error, (api.TooManyRequests, UploadRefusedError))


@dataclass(frozen=True, slots=True)
class Patience:
    """For how many seconds an operation is tried. The waits between tries and for one answer go by it.

    With the default: 0.2 s at first, doubled up to 16 s, with jitter, and 60 s for one answer. Google's
    advice for Cloud Storage is exponential with jitter from 1 s on, up to 32 or 64 s between tries; it
    starts lower here, because a worker waits for each of these operations.
    """

    total_s: float = 120.0

    @classmethod
    def configured(cls) -> Patience:
        """What the environment says.

        Raises:
            ConfigurationError: it is no number of seconds.
        """
        text = os.environ.get(PATIENCE_VARIABLE, "")
        try:
            patience = cls(float(text)) if text else cls()
        except ValueError:
            patience = cls(-1)
        if not 0 < patience.total_s < math.inf:
            raise ConfigurationError(f"{PATIENCE_VARIABLE} = {text!r}: give a number of seconds, such as 120")
        return patience

    @property
    def timeout(self) -> tuple[float, float]:
        """As `requests` takes it."""
        return min(10.0, self.total_s / 2), self.total_s / 2

    def retry(self, work: Callable[[], T]) -> T:
        """Do something until it succeeds, its error is none that passes, or patience is at its end."""
        retrying = tenacity.Retrying(
            stop=stop_after_delay(self.total_s),
            wait=wait_random_exponential(multiplier=self.total_s / 600, max=self.total_s / 7.5),
            retry=tenacity.retry_if_exception(is_transient),
            reraise=True,
        )
        return retrying(work)


def open_client() -> Any:
    """The process's client: application default credentials, or an emulator without any.

    Raises:
        ConfigurationError: there are no credentials.
    """
    return _client(os.environ.get(EMULATOR_VARIABLE, ""), os.getpid())


@lru_cache(maxsize=4)
def _client(emulator: str, _process: int) -> Any:
    """One per emulator address; a forked process gets its own, with connections of its own."""
    try:
        if emulator:
            client = storage.Client(project="emulator", credentials=AnonymousCredentials())
        else:
            client = storage.Client()
    except (google.auth.exceptions.DefaultCredentialsError, OSError) as error:
        raise ConfigurationError(
            "gs:// needs credentials of Google Cloud and there are none: run `gcloud auth "
            "application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a service account's "
            f"file; on Google Cloud, give the machine a service account ({_said(error)})"
        ) from None
    # For traces, the library looks up a bucket after every "not found", in a thread for each: that would be
    # a second request for each new batch, and needs a right on the bucket that nothing else does.
    client._bucket_metadata_cache = None
    adapter = HTTPAdapter(pool_connections=4, pool_maxsize=CONNECTIONS, pool_block=False)
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, adapter)
    return client


def trouble(address: str, error: BaseException) -> StoreError:
    """A sentence for an error that no further try mends."""
    if isinstance(error, StoreError):
        return error
    return StoreError(f"{address}: {_said(error)}; {_todo(error)}")


def _todo(error: BaseException) -> str:
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return "run again" if is_transient(error) else "log in again, or mend the service account"
    if isinstance(error, api.Forbidden) and _KEPT.search(str(error)):
        return "an output needs a bucket without retention policies and holds (soft delete is no such thing)"
    if isinstance(error, api.Forbidden | api.Unauthorized):
        return "grant this account roles/storage.objectUser on the bucket"
    if isinstance(error, api.NotFound):
        return "create the bucket, or mend the address"
    if isinstance(error, api.ClientError) and not is_transient(error):
        return "mend that, then run again"
    return "run again when the service is well"


def _said(error: BaseException) -> str:
    """What the service says, without the request that it answers."""
    if isinstance(error, api.GoogleAPICallError) and error.response is not None:
        with suppress(ValueError, KeyError, TypeError):
            return f"{error.code} {error.response.json()['error']['message']}"[:_LONGEST]
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_LONGEST]
