"""How many tokens a text has, where the model's tokenizer is not at hand; how long an answer may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schemas.ids import canonical_json
from schemas.output_types import resolve_reference

FRAME_TOKENS = 8
"""Tokens that a provider adds around the texts of one request (roles, separators): 3 to 7 in published
counts. Its structured-output preamble is not published; the hard bound covers it."""
SENTENCE_BYTES = 80
"""Assumed length of a string in an answer for which the JSON Schema sets no bounds: one sentence."""
ARRAY_ITEMS = 3
"""Assumed number of items of an array for which the JSON Schema sets no bounds."""
_NUMBER_BYTES = {"integer": (1, 3), "number": (1, 6), "boolean": (4, 5), "null": (4, 4)}


@dataclass(frozen=True, slots=True)
class TokenRatio:
    """UTF-8 bytes per token of a text: `most` gives the fewest tokens, `least` the most.

    `measured` says that it comes from answers in the output; then the request's frame is in it already.
    """

    least: float
    expected: float
    most: float
    basis: str
    measured: bool = False

    def low(self, size: int) -> int:
        """The fewest tokens of a request whose texts have `size` bytes."""
        return int(size / self.most)

    def expected_tokens(self, size: int) -> int:
        """The most likely number of tokens."""
        return round(size / self.expected) + self._frame

    def high(self, size: int) -> int:
        """The most tokens that are likely; the hard bound is one token for each byte that is sent."""
        return -int(-size // self.least) + 2 * self._frame

    @property
    def _frame(self) -> int:
        return 0 if self.measured else FRAME_TOKENS


RATIOS = {
    "openai": TokenRatio(
        1.6,
        4.0,
        5.2,
        "1.6 to 5.2 UTF-8 bytes a token, 4.0 expected: o200k_base over 2.4 MB of English documentation "
        "(4.28), Python source (3.31), JSON (4.18), tables of numbers (1.63) and 30 other languages (2.35 to "
        "5.17)",
    ),
    "anthropic": TokenRatio(
        1.4,
        2.9,
        4.4,
        "1.4 to 4.4 UTF-8 bytes a token, 2.9 expected: Anthropic publishes no tokenizer of its newer models; "
        "measured with the published one of Claude 2 (documentation 3.93, Python 2.95, 30 languages 1.42 to "
        "3.19, tables of numbers 1.61), of which newer models make 1.0 to 1.35 times the tokens by their "
        "migration guide",
    ),
    "gemini": TokenRatio(
        1.6,
        4.0,
        5.2,
        "1.6 to 5.2 UTF-8 bytes a token, 4.0 expected: about 4 characters by Google's guide; the interval is "
        "that measured for o200k_base, a vocabulary of about the same size",
    ),
}
"""By provider. Measured in November 2026; the ratio is that of a whole corpus, single texts vary more."""


def answer_bytes(schema: dict[str, Any]) -> tuple[int, int]:
    """Bytes of the shortest and of a typical answer that a JSON Schema allows.

    The shortest has required properties and least lengths only; the typical one all properties, a
    sentence (SENTENCE_BYTES) for a free string, ARRAY_ITEMS items. A reference inside
    itself counts as `null`.
    """
    return _size(schema, schema, ("#",))


def _size(schema: Any, root: dict[str, Any], inside: tuple[str, ...]) -> tuple[int, int]:
    if not isinstance(schema, dict):
        return 4, 4
    if "$ref" in schema:
        reference = str(schema["$ref"])
        if reference in inside:
            return 4, 4
        return _size(resolve_reference(reference, root), root, (*inside, reference))
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if allowed:
        sizes = [len(canonical_json(value)) for value in allowed]
        return min(sizes), round(sum(sizes) / len(sizes))
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            arms = [_size(arm, root, inside) for arm in schema[key]]
            return min(least for least, _ in arms), max(typical for _, typical in arms)
    return _typed_size(schema, root, inside)


def _typed_size(schema: dict[str, Any], root: dict[str, Any], inside: tuple[str, ...]) -> tuple[int, int]:
    names = schema.get("type", "object" if "properties" in schema else "string")
    kinds = [names] if isinstance(names, str) else [n for n in names if n != "null"] or ["null"]
    kind = kinds[0]
    if kind == "object":
        return _object_size(schema, root, inside)
    if kind == "array":
        return _array_size(schema, root, inside)
    if kind in _NUMBER_BYTES:
        return _NUMBER_BYTES[kind]
    least = int(schema.get("minLength", 0))
    typical = max(least, min(SENTENCE_BYTES, int(schema.get("maxLength", SENTENCE_BYTES))))
    return least + 2, typical + 2


def _object_size(schema: dict[str, Any], root: dict[str, Any], inside: tuple[str, ...]) -> tuple[int, int]:
    required = set(schema.get("required", ()))
    least, typical = 2, 2
    for name, sub in (schema.get("properties") or {}).items():
        key = len(canonical_json(name)) + 2  # with colon and comma
        low, usual = _size(sub, root, inside)
        typical += key + usual
        least += key + low if name in required else 0
    return least, typical


def _array_size(schema: dict[str, Any], root: dict[str, Any], inside: tuple[str, ...]) -> tuple[int, int]:
    low, usual = _size(schema.get("items", {"type": "string"}), root, inside)
    fewest = int(schema.get("minItems", 0))
    items = max(fewest, min(ARRAY_ITEMS, int(schema.get("maxItems", ARRAY_ITEMS))))
    return 2 + fewest * (low + 1), 2 + items * (usual + 1)
