"""Documents of an attempt whose calls have all been made, and which is not committed yet.

Whoever made them may yet commit it, if it only stood still: its record would know nothing of a further call.
So none is made; what has no answer by then fails as it did, or so that the next attempt asks.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.failures import FailureClass
from transforms.call.ledger import RecordedCall
from transforms.call.site import Site
from transforms.call.wire import CallFailure, EncodedRequest, unsent

_INTERRUPTED = (
    "the process that made this attempt's calls was interrupted before it committed them; a document without "
    "an answer is asked in the next attempt"
)


def said_before(
    site: Site, encoded: EncodedRequest | CallFailure, recorded: Sequence[RecordedCall]
) -> CallFailure:
    """Why a backend gave no answer: what it said last to this very request, if the ledger has that."""
    if isinstance(encoded, CallFailure):
        return encoded
    for call in reversed(recorded):
        same = call.backend == site.name and call.request_sha256 == encoded.sha256
        if same and call.end == "failed":
            return unsent(FailureClass(call.final["class"]), call.final["message"])
    return unsent(FailureClass.CANCELLED, _INTERRUPTED)
