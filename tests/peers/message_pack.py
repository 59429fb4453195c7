"""As much of MessagePack as values of Terraform take: the fields of a map, each left as the bytes that it is.

The format: https://github.com/msgpack/msgpack/blob/master/spec.md. Terraform writes a value that is not known
yet as the extension of type 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

NULL = b"\xc0"
UNKNOWN = b"\xd4\x00\x00"
_FIXED = {
    **dict.fromkeys((0xC0, 0xC2, 0xC3), 1),
    **{0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9},
    **{0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18},
}
_COUNTED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # of bytes and text: width of the length
_EXTENDED = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_MEMBERS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # width of the count, values a member


def fields_of(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and values of a map."""
    count, at = _members(data, 0)
    for _ in range(count // 2):
        middle = _end(data, at)
        end = _end(data, middle)
        yield _text(data[at:middle]), data[middle:end]
        at = end


def map_of(fields: Mapping[str, bytes]) -> bytes:
    """A map of values that are bytes already."""
    head = b"\xde" + len(fields).to_bytes(2, "big")
    return head + b"".join(_packed(name) + value for name, value in fields.items())


def _packed(text: str) -> bytes:
    data = text.encode()
    return b"\xdb" + len(data).to_bytes(4, "big") + data


def _text(data: bytes) -> str:
    width = _COUNTED.get(data[0], 0)
    return data[1 + width :].decode()


def _members(data: bytes, at: int) -> tuple[int, int]:
    """How many values a list or a map holds, names included, and where the first one is."""
    kind = data[at]
    if 0x80 <= kind <= 0x9F:
        return (kind & 15) * (2 if kind < 0x90 else 1), at + 1
    width, each = _MEMBERS[kind]
    return int.from_bytes(data[at + 1 : at + 1 + width], "big") * each, at + 1 + width


def _end(data: bytes, at: int) -> int:
    """Where the value that begins there ends."""
    kind = data[at]
    if kind <= 0x7F or kind >= 0xE0:
        return at + 1
    if 0xA0 <= kind <= 0xBF:
        return at + 1 + (kind & 31)
    if kind in _FIXED:
        return at + _FIXED[kind]
    width = _COUNTED.get(kind) or _EXTENDED.get(kind)
    if width is not None:
        length = int.from_bytes(data[at + 1 : at + 1 + width], "big")
        return at + 1 + width + length + (kind in _EXTENDED)
    count, at = _members(data, at)
    for _ in range(count):
        at = _end(data, at)
    return at
