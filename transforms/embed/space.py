"""The vector space that an embedding lives in, and its fingerprint."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from schemas.ids import canonical_json, sha256_hex

FINGERPRINT_VERSION = "space/1"


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """All that decides which vector a text gets. Vectors compare only within one space.

    `model` is a name for people and no part of the fingerprint: the digests say which model it is.
    `settings_sha256` covers the architecture as config.json gives it, prompt and lower-casing.
    """

    model: str
    weights_sha256: str
    tokenizer_sha256: str
    settings_sha256: str
    pooling: str
    normalize: bool
    max_length: int
    dim: int
    compute_dtype: str
    dtype: str

    @property
    def fingerprint(self) -> str:
        """`space/1:` and 32 hexadecimal digits; equal for equal spaces, on every machine."""
        values = asdict(self)
        values.pop("model")
        return f"{FINGERPRINT_VERSION}:{sha256_hex(canonical_json(values))[:32]}"

    def describe(self) -> str:
        """The space in one line, for messages."""
        norm = "normalised" if self.normalize else "not normalised"
        return (
            f"{self.model}, {self.dim} dimensions, {self.pooling} pooling, {norm}, "
            f"{self.max_length} tokens, computed in {self.compute_dtype}, stored as {self.dtype} "
            f"({self.fingerprint})"
        )
