"""Keys for workers that nobody gave an environment: Secret Manager behind the variables' names.

On Dataflow a worker has its image's environment only. A key stands in Secret Manager under the name of
its environment variable; the worker's service account may read it, and the job carries nothing but the
project's id.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from schemas.errors import MissingSecretError


class ManagedSecrets(Mapping[str, str]):
    """The environment, and Secret Manager for what it lacks. Values are fetched when they are asked for.

    Raises (on look-up):
        MissingSecretError: Secret Manager refuses, or can't be reached.
    """

    def __init__(
        self,
        project: str,
        environ: Mapping[str, str] | None = None,
        client: Callable[[], Any] | None = None,
    ) -> None:
        self._project = project
        self._environ = os.environ if environ is None else environ
        self._client = client or _secret_manager

    def __getitem__(self, name: str) -> str:
        if name in self._environ:
            return self._environ[name]
        if not name:
            raise KeyError(name)
        return self._fetch(name)

    def _fetch(self, name: str) -> str:
        from google.api_core.exceptions import GoogleAPIError, NotFound
        from google.auth.exceptions import GoogleAuthError

        path = f"projects/{self._project}/secrets/{name}/versions/latest"
        try:
            return str(self._client().access_secret_version(name=path).payload.data.decode())
        except NotFound:
            raise KeyError(name) from None
        except (GoogleAPIError, GoogleAuthError) as error:
            raise MissingSecretError(
                f"{path} can't be read ({type(error).__name__}): grant the workers' service account the role "
                "roles/secretmanager.secretAccessor on it"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._environ)

    def __len__(self) -> int:
        return len(self._environ)


def keys_for(secret_project: str | None) -> Mapping[str, str]:
    """Where a worker reads its keys."""
    return os.environ if secret_project is None else ManagedSecrets(secret_project)


def _secret_manager() -> Any:
    from google.cloud import secretmanager

    return secretmanager.SecretManagerServiceClient()
