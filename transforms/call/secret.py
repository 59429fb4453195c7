"""Keys: read from the environment by name, and kept out of everything that can be printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from schemas.backends import HostedBackend
from schemas.errors import MissingSecretError

DEFAULT_KEY_ENV = {
    "anthropic": "ANTHROPIC_API_KEY",
    "openai": "OPENAI_API_KEY",
    "gemini": "GEMINI_API_KEY",
}
MASK = "[key]"
_SHORTEST_MASKED = 4  # masking a shorter string would garble ordinary text


class Secret:
    """A key that shows itself to `reveal` alone: not to repr, str, format, pickle or copy."""

    __slots__ = ("_bytes", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        self._bytes = value.encode()

    def reveal(self) -> str:
        """The key itself; for the one place that puts it on the wire."""
        return self._value

    def mask(self, body: bytes) -> bytes:
        """`body` without the key: a server may echo it, and bodies are stored."""
        if len(self._bytes) >= _SHORTEST_MASKED and self._bytes in body:
            return body.replace(self._bytes, MASK.encode())
        return body

    def mask_text(self, text: str) -> str:
        """`text` without the key."""
        return text.replace(self._value, MASK) if len(self._bytes) >= _SHORTEST_MASKED else text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is never pickled or copied; workers read it from their own environment")


def key_variable(backend: HostedBackend) -> str:
    """Name of the environment variable of the backend's key; empty on Vertex, which takes no key."""
    if backend.platform == "vertex":
        return ""
    return backend.api_key_env or DEFAULT_KEY_ENV[backend.provider]


def read_key(name: str, backend: HostedBackend, environ: Mapping[str, str]) -> Secret | None:
    """The backend's key; None for a backend that takes none.

    Raises:
        MissingSecretError: the variable is unset or blank, or holds what no HTTP header can carry.
    """
    variable = key_variable(backend)
    value = environ.get(variable, "").strip()
    if not value:
        if not backend.requires_key:
            return None
        raise MissingSecretError(
            f"backend {name!r} needs a key in the environment variable {variable}, which is not set: "
            f"set it, or rehearse the run without keys and costs with --rehearsal"
        )
    if not (value.isascii() and value.isprintable()):
        raise MissingSecretError(
            f"the key of backend {name!r} in {variable} holds characters that an HTTP header can't carry "
            f"(a line break, a quotation mark from a text editor): set it again"
        )
    return Secret(value)
