"""A loopback stand-in for hosted providers: a rehearsal speaks their wire formats and costs nothing."""

from transforms.rehearsal.server import Journal, RehearsalServer

__all__ = ["Journal", "RehearsalServer"]
