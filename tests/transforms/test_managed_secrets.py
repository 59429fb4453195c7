from types import SimpleNamespace
from typing import Any

import pytest
from google.api_core.exceptions import NotFound, PermissionDenied

from schemas.errors import MissingSecretError
from tests.support.workloads import workload
from transforms.call.secret import read_key
from transforms.managed_secrets import ManagedSecrets, keys_for

KEPT = {"projects/p/secrets/OPENAI_API_KEY/versions/latest": b"sk-kept"}


class Manager:
    """A Secret Manager with one secret."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[str] = []
        self._error = error

    def access_secret_version(self, name: str) -> Any:
        self.asked.append(name)
        if self._error is not None:
            raise self._error
        if name not in KEPT:
            raise NotFound(name)
        return SimpleNamespace(payload=SimpleNamespace(data=KEPT[name]))


def secrets(manager: Manager, **environ: str) -> ManagedSecrets:
    return ManagedSecrets("p", environ, lambda: manager)


def test_a_key_that_the_environment_lacks_is_fetched_by_its_variables_name() -> None:
    manager = Manager()
    key = read_key("mini", workload().hosted_backends()["mini"], secrets(manager))
    assert key is not None
    assert key.reveal() == "sk-kept"
    assert manager.asked == list(KEPT)


def test_what_the_environment_has_is_not_asked_for() -> None:
    manager = Manager()
    assert secrets(manager, OPENAI_API_KEY="sk-own")["OPENAI_API_KEY"] == "sk-own"
    assert manager.asked == []


def test_a_secret_that_does_not_exist_is_a_missing_key() -> None:
    with pytest.raises(MissingSecretError, match="OPENAI_API_KEY"):
        read_key("mini", workload().hosted_backends()["mini"], ManagedSecrets("other", {}, Manager))


def test_a_refusal_names_the_secret_and_the_role_and_shows_nothing_else() -> None:
    manager = Manager(PermissionDenied("caller does not have permission, token ya29.abc"))
    with pytest.raises(MissingSecretError, match=r"secrets/OPENAI_API_KEY/.*secretAccessor") as caught:
        secrets(manager)["OPENAI_API_KEY"]
    assert "ya29" not in str(caught.value)


def test_without_a_project_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
    assert keys_for(None)["OPENAI_API_KEY"] == "sk-env"
    assert isinstance(keys_for("p"), ManagedSecrets)
