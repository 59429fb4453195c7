"""Why a document has no result: the failure classes, and which of them a later run tries again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FailureClass(StrEnum):
    """The reason of a failure, as it stands in the `error_class` column."""

    # the document itself
    NULL_ID = "null_id"
    DUPLICATE_ID = "duplicate_id"
    NULL_TEXT = "null_text"
    EMPTY_TEXT = "empty_text"
    TEXT_TOO_LONG = "text_too_long"
    INVALID_TEXT = "invalid_text"
    # our own decision
    NO_ROUTE = "no_route"
    POLICY_REJECTED = "policy_rejected"
    EXPRESSION_ERROR = "expression_error"
    PROMPT_ERROR = "prompt_error"
    BUDGET_EXHAUSTED = "budget_exhausted"
    UNKNOWN_PRICE = "unknown_price"
    CANCELLED = "cancelled"
    # the provider has not answered yet
    AWAITING_BATCH = "awaiting_batch"
    # the provider did not answer
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    PROVIDER_ERROR = "provider_error"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    DEADLINE = "deadline"
    # the provider said no
    BAD_REQUEST = "bad_request"
    AUTHENTICATION = "authentication"
    PERMISSION = "permission"
    NOT_FOUND = "not_found"
    QUOTA_EXHAUSTED = "quota_exhausted"
    REQUEST_TOO_LARGE = "request_too_large"
    # the provider answered, and the answer is no result (it was paid)
    REFUSED = "refused"
    TRUNCATED = "truncated"
    EMPTY_ANSWER = "empty_answer"
    INVALID_JSON = "invalid_json"
    SCHEMA_MISMATCH = "schema_mismatch"
    MALFORMED_RESPONSE = "malformed_response"
    # the embedder
    EMBED_ERROR = "embed_error"


@dataclass(frozen=True, slots=True)
class FailureKind:
    """What a failure class means: whether a rerun tries the document again, and what to do."""

    retryable: bool
    meaning: str
    remedy: str


FAILURE_KINDS: dict[FailureClass, FailureKind] = {
    FailureClass.NULL_ID: FailureKind(False, "the id is null", "give every document an id"),
    FailureClass.DUPLICATE_ID: FailureKind(
        False, "an earlier document of the run has the same id", "make ids unique, or set input.unique_ids"
    ),
    FailureClass.NULL_TEXT: FailureKind(False, "the text is null", "filter such rows with input.filter"),
    FailureClass.EMPTY_TEXT: FailureKind(
        False, "the text is empty or blank", "filter such rows with input.filter"
    ),
    FailureClass.TEXT_TOO_LONG: FailureKind(
        False, "the text is longer than input.max_text_chars", "split the text or raise input.max_text_chars"
    ),
    FailureClass.INVALID_TEXT: FailureKind(
        False, "a text, id or column value is not valid UTF-8", "re-encode the column as UTF-8"
    ),
    FailureClass.NO_ROUTE: FailureKind(
        False, "no route's `when` matched", "add a route, or drop the rows with input.filter"
    ),
    FailureClass.POLICY_REJECTED: FailureKind(
        False, "a policy rule rejected the document", "see the rule's reason; nothing was sent"
    ),
    FailureClass.EXPRESSION_ERROR: FailureKind(
        False, "an expression of the workload failed on this row", "mend the expression or the row"
    ),
    FailureClass.PROMPT_ERROR: FailureKind(
        False, "the prompt template failed on this row", "mend the template or the row"
    ),
    FailureClass.BUDGET_EXHAUSTED: FailureKind(
        True, "the budget would have been passed", "raise budget.amount and run again"
    ),
    FailureClass.UNKNOWN_PRICE: FailureKind(
        True,
        "the price book has no price for the model",
        'set the backend\'s price or budget.on_unknown_price = "allow"',
    ),
    FailureClass.CANCELLED: FailureKind(True, "the run was cancelled first", "run again"),
    FailureClass.AWAITING_BATCH: FailureKind(
        True, "its request is in a provider batch that has not come back yet", "run again later to collect it"
    ),
    FailureClass.RATE_LIMITED: FailureKind(True, "still rate-limited after every try", "run again later"),
    FailureClass.OVERLOADED: FailureKind(True, "the provider was overloaded (529, 503)", "run again later"),
    FailureClass.PROVIDER_ERROR: FailureKind(True, "the provider failed (5xx)", "run again later"),
    FailureClass.TIMEOUT: FailureKind(
        True, "no answer in time; it may have been paid", "run again, or raise limits.request_timeout_s"
    ),
    FailureClass.CONNECTION: FailureKind(
        True, "the connection failed or broke off", "check base_url and network, run again"
    ),
    FailureClass.DEADLINE: FailureKind(
        True, "the document's deadline passed", "run again, or raise limits.document_deadline_s"
    ),
    FailureClass.BAD_REQUEST: FailureKind(
        False, "the provider refused the request (400)", "see the message; mend model or parameters"
    ),
    FailureClass.AUTHENTICATION: FailureKind(
        True, "the key was not accepted (401)", "mend the key, run again"
    ),
    FailureClass.PERMISSION: FailureKind(
        True, "the key may not use this model (403)", "ask for access or change the backend, run again"
    ),
    FailureClass.NOT_FOUND: FailureKind(
        True, "the model or address does not exist (404)", "mend model or base_url, run again"
    ),
    FailureClass.QUOTA_EXHAUSTED: FailureKind(
        True, "the account's quota or spend limit is used up", "raise it with the provider, run again"
    ),
    FailureClass.REQUEST_TOO_LARGE: FailureKind(
        False, "the request is too large for the model", "shorten the text or use another model"
    ),
    FailureClass.REFUSED: FailureKind(
        False, "the model or its filter refused to answer", "see the raw answer; route it elsewhere"
    ),
    FailureClass.TRUNCATED: FailureKind(
        False, "the answer was cut off at max_output_tokens", "raise the backend's max_output_tokens"
    ),
    FailureClass.EMPTY_ANSWER: FailureKind(
        False, "the answer has no text", "see usage: a reasoning model may have spent all its tokens"
    ),
    FailureClass.INVALID_JSON: FailureKind(False, "the answer is not JSON", "see the raw answer"),
    FailureClass.SCHEMA_MISMATCH: FailureKind(
        False, "the answer does not fit the JSON Schema", "see the raw answer"
    ),
    FailureClass.MALFORMED_RESPONSE: FailureKind(
        True, "the response is not what the provider's API promises", "run again; check base_url"
    ),
    FailureClass.EMBED_ERROR: FailureKind(False, "the embedder could not use the text", "see the message"),
}


NO_FAULT = frozenset({FailureClass.POLICY_REJECTED, FailureClass.AWAITING_BATCH})
"""Documents without a result where nothing went wrong: kept back on purpose, or on their way."""


def is_retryable(failure: FailureClass) -> bool:
    """Whether a later run of the same workload tries such a document again by itself."""
    return FAILURE_KINDS[failure].retryable
