"""The vector space that an embedding lives in, and its fingerprint."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields

from schemas.ids import canonical_json, sha256_hex

FINGERPRINT_VERSION = "space/1"


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """All that decides which vector a text gets. Vectors compare only within one space.

    `model` is a name for people and no part of the fingerprint: the digests say which model it is.
    `settings_sha256` covers the architecture as config.json gives it, prompt and lower-casing.
    `cut_from` is the length of the model's vectors when only their first `dim` components are kept, else
    0. A field with a default is part of the fingerprint only where it differs from it.
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
    long_documents: str = "truncate"
    chunk_overlap: int = 0
    cut_from: int = 0

    @property
    def fingerprint(self) -> str:
        """`space/1:` and 32 hexadecimal digits; equal for equal spaces, on every machine."""
        values = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "model"
            and (field.default is MISSING or getattr(self, field.name) != field.default)
        }
        return f"{FINGERPRINT_VERSION}:{sha256_hex(canonical_json(values))[:32]}"

    def describe(self) -> str:
        """The space in one line, for messages."""
        norm = "normalised" if self.normalize else "not normalised"
        cut = f" of {self.cut_from}" if self.cut_from else ""
        long = f" a chunk ({self.chunk_overlap} shared)" if self.long_documents == "chunk" else ""
        return (
            f"{self.model}, {self.dim}{cut} dimensions, {self.pooling} pooling, {norm}, "
            f"{self.max_length} tokens{long}, computed in {self.compute_dtype}, stored as {self.dtype} "
            f"({self.fingerprint})"
        )
