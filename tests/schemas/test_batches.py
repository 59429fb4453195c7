import json
from dataclasses import asdict, replace

import pytest

from schemas.batches import BatchReport, CommitRecord, ref_from_dict
from tests.support.records import REF, commit_record

RECORD = commit_record(ref=replace(REF, duplicate_rows=(101, 103), retry_classes=("refused",)))


def test_a_commit_record_comes_back_from_its_json() -> None:
    assert CommitRecord.from_dict(json.loads(RECORD.to_json())) == RECORD


def test_equal_records_have_equal_bytes() -> None:
    turned = replace(RECORD, failures_by_class=dict(reversed(RECORD.failures_by_class.items())))
    assert turned.to_json() == RECORD.to_json()


@pytest.mark.parametrize("version", ["commit/3", None])
def test_a_record_of_another_version_is_refused(version: str | None) -> None:
    data = {**json.loads(RECORD.to_json()), "version": version}
    with pytest.raises(ValueError, match="commit/1"):
        CommitRecord.from_dict(data)


@pytest.mark.parametrize("record", [None, RECORD])
def test_a_report_comes_back_from_a_line_of_json(record: CommitRecord | None) -> None:
    report = BatchReport("b", 2, "committed", "", record)
    assert BatchReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_a_reference_comes_back_from_parsed_values() -> None:
    assert ref_from_dict(json.loads(json.dumps(asdict(RECORD.ref)))) == RECORD.ref
    missing = {**asdict(REF), "duplicate_rows": None, "retry_classes": None}
    assert ref_from_dict(missing) == REF
