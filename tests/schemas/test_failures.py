from schemas.failures import FAILURE_KINDS, FailureClass, is_retryable


def test_every_class_says_what_it_means_and_what_to_do() -> None:
    assert set(FAILURE_KINDS) == set(FailureClass)
    assert all(kind.meaning and kind.remedy for kind in FAILURE_KINDS.values())


def test_what_the_document_or_an_answer_paid_for_decides_is_never_retried_by_itself() -> None:
    final = {
        "null_id", "duplicate_id", "null_text", "empty_text", "text_too_long", "invalid_text", "no_route",
        "policy_rejected", "expression_error", "prompt_error", "bad_request", "request_too_large", "refused",
        "truncated", "empty_answer", "invalid_json", "schema_mismatch", "embed_error",
    }  # fmt: skip
    assert {c.value for c in FailureClass if not is_retryable(c)} == final


def test_the_column_holds_the_plain_name() -> None:
    assert str(FailureClass.NULL_ID) == "null_id"
    assert FailureClass("null_id") is FailureClass.NULL_ID
