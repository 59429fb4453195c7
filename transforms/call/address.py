"""Addresses that may be reached: those of the workload's backends and no others. Fails closed."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from schemas.errors import ConfigurationError

_DEFAULT_PORTS = {"https": 443, "http": 80}
_LOOPBACK_NAMES = frozenset({"localhost"})


@dataclass(frozen=True, slots=True)
class Address:
    """Where a backend is."""

    scheme: str
    host: str
    port: int


def parse_base_url(name: str, base_url: str) -> tuple[str, Address]:
    """The base URL without a trailing slash, and its address.

    Raises:
        ConfigurationError: not an https URL (http is for loopback only), or with a user, query or fragment.
    """
    where = f"backends.{name}.base_url = {base_url!r}"
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        raise ConfigurationError(f"{where} is not a URL: write https://host/path") from None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ConfigurationError(f"{where} is not an http(s) URL: write https://host/path")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigurationError(
            f"backends.{name}.base_url carries a user, a query or a fragment: keys come from the environment "
            f"(api_key_env), and the path ends at the API's version"
        )
    host = parts.hostname.lower().rstrip(".")
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigurationError(f"{where} is neither https nor loopback: a key would travel in the clear")
    return _trimmed(parts), Address(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme])


def _trimmed(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def is_loopback(host: str) -> bool:
    """Whether the name or address is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in _LOOPBACK_NAMES


class AllowList:
    """The addresses that sockets may be opened to."""

    def __init__(self, addresses: frozenset[Address]) -> None:
        self._addresses = addresses
        self._names = frozenset((address.host, address.port) for address in addresses)
        self._resolved: set[tuple[str, int]] = set()

    def allows_url(self, url: str) -> bool:
        """Whether `url` is at one of the addresses, scheme included."""
        parts = urlsplit(url)
        host = (parts.hostname or "").lower().rstrip(".")
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
        return Address(parts.scheme, host, port) in self._addresses

    def allows_name(self, host: str, port: int) -> bool:
        """Whether `host` may be looked up."""
        return (host.lower().rstrip("."), port) in self._names

    def admit(self, host: str, ip: str, port: int) -> bool:
        """Notes what an allowed name resolved to. A public name never leads to this machine or link-local."""
        address = ipaddress.ip_address(ip.partition("%")[0])
        if address.is_link_local or address.is_multicast or address.is_unspecified:
            return False
        if address.is_loopback and not is_loopback(host):
            return False
        self._resolved.add((ip, port))
        return True

    def allows_socket(self, ip: str, port: int) -> bool:
        """Whether a socket may be opened to this IP address: an allowed name's, or allowed itself."""
        return (ip, port) in self._resolved or (ip, port) in self._names
