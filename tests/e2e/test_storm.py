"""A fault storm through the real pipeline: everything is accounted for, by the provider's own journal."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from tests.e2e.storm import storm


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-not-a-key")


@pytest.mark.slow
def test_after_a_storm_every_answer_that_was_billed_is_in_a_row_or_named(tmp_path: Path) -> None:
    done = storm(tmp_path, 2000, in_flight=64)
    assert done.problems() == []
    ledger = done.verification.ledger
    assert ledger.ambiguous > 20, "resets, hangs and truncated bodies must have happened"
    assert done.billed > ledger.answered, "some truncated answers must have been billed"
    classes = {group.error_class for group in done.manifest.failure_groups}
    assert "refused" in classes
    assert done.billed_most <= 4
    assert Decimal(done.manifest.amount) > 0


@pytest.mark.slow
def test_a_cap_holds_in_a_storm_and_what_was_paid_is_delivered(tmp_path: Path) -> None:
    done = storm(tmp_path, 600, cap="0.25", in_flight=32, seed=3)
    assert done.manifest.reason_class == "budget"
    spent = Decimal(done.manifest.list_amount) + done.verification.ledger.ambiguous_amount
    assert Decimal("0.1") < spent <= Decimal("0.25")
    assert done.verification.state == "proven"
    assert done.distinct_documents == 600
