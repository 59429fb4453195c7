"""Ports for servers that have to be told theirs before they listen."""

from __future__ import annotations

import socket
from random import SystemRandom

HOST = "127.0.0.1"
_FROM, _BELOW = 15_000, 32_000
"""Below those that Linux gives to outgoing connections (net.ipv4.ip_local_port_range, 32768 to 60999 where
nobody has changed it), any of which could take the port in the seconds until its server listens."""
_TRIES = 100


def free_port() -> int:
    """A port of the loopback address that is free, and that nobody else is likely to choose."""
    for _ in range(_TRIES):
        port = SystemRandom().randrange(_FROM, _BELOW)
        if _is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
