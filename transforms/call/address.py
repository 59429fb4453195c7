"""Addresses that may be reached: those of the workload's backends and no others. Fails closed."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from schemas.errors import ConfigurationError

_DEFAULT_PORTS = {"https": 443, "http": 80}
_LOOPBACK_NAMES = frozenset({"localhost"})
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


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


def _innermost(ip: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address that packets end up at: IPv4 ones also come written as IPv6 (RFC 4291, 3056, 6052)."""
    address = ipaddress.ip_address(ip.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


class AllowList:
    """The addresses that sockets may be opened to.

    `own` are those of them that may be in a private network, because the workload names them itself; by
    default all.
    """

    def __init__(self, addresses: frozenset[Address], own: frozenset[Address] | None = None) -> None:
        self._addresses = addresses
        self._own = frozenset((address.host, address.port) for address in (addresses if own is None else own))
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
        """Notes what an allowed name resolved to. None leads to link-local, only localhost to this machine.

        A provider's own name, which the workload does not name, leads to no private network either.
        """
        address = _innermost(ip)
        if address.is_link_local or address.is_multicast or address.is_unspecified:
            return False
        if address.is_loopback:
            if not is_loopback(host):
                return False
        elif not address.is_global and (host, port) not in self._own:
            return False
        self._resolved.add((ip, port))
        return True

    def allows_socket(self, ip: str, port: int) -> bool:
        """Whether a socket may be opened to this IP address: an allowed name's, or allowed itself."""
        return (ip, port) in self._resolved or (ip, port) in self._names
