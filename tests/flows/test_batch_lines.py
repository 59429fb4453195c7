from collections.abc import Iterator
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from flows.batch_lines import BatchLine, BatchLines

COUNTS = st.integers(0, 3)
LINES = st.lists(
    st.builds(
        BatchLine,
        group=st.integers(-1, 3),
        batch_id=st.sampled_from([f"{n:032x}" for n in range(5)]),
        attempt=st.integers(1, 3),
        state=st.sampled_from(["committed", "already_committed", "failed"]),
        rows=COUNTS,
        results=COUNTS,
        failures=COUNTS,
        retryable=COUNTS,
        amount=st.sampled_from(["0.1", "0.25", None]),
        uri=st.sampled_from(["/in/a", "/in/b"]),
        error=st.sampled_from(["", "no disk"]),
        faults=COUNTS,
        again=st.dictionaries(st.sampled_from(["timeout", "overloaded"]), st.integers(1, 3)),
    ),
    max_size=8,
)


@given(LINES, LINES)
def test_lines_come_back_as_they_were_and_are_summed_as_one_would(
    first: list[BatchLine], second: list[BatchLine]
) -> None:
    every = first + second
    found = BatchLines.joined([BatchLines.of(first), BatchLines.of(second)])

    assert list(found) == every
    assert [found[n] for n in range(-1, len(every) - 1 if every else -1)] == (
        every[-1:] + every[:-1] if every else []
    )
    assert list(found[1:3]) == every[1:3]
    assert [batch.hex() for batch in found.batches.to_pylist()] == [line.batch_id for line in every]
    assert found.total("retryable") == sum(line.retryable for line in every)
    known = [Decimal(line.amount) for line in every if line.amount is not None]
    assert found.amount() == (sum(known, Decimal(0)), len(known) == len(every))
    assert found.again() == {
        name: number
        for name in ("timeout", "overloaded")
        if (number := sum(line.again.get(name, 0) for line in every))
    }


@given(LINES, LINES)
def test_the_worst_come_first_and_equals_stay_in_their_order(
    first: list[BatchLine], second: list[BatchLine]
) -> None:
    found = BatchLines.joined([BatchLines.of(first), BatchLines.of(second)])
    committed = [line for line in first + second if not line.is_failed]

    assert list(found.at(found.worst_first())) == sorted(
        committed, key=lambda line: (-line.retryable, -line.failures, line.group)
    )


def test_a_hundred_thousand_lines_take_a_few_megabytes() -> None:
    def lines() -> Iterator[BatchLine]:
        for n in range(20_000):
            yield BatchLine(0, f"{n:032x}", 1, "committed", 10, 10, 0, 0, "0.125", "/in/a.parquet", "")

    columns = BatchLines.joined(BatchLines.of(lines()) for _ in range(5))

    assert len(columns) == 100_000
    assert columns.nbytes < 8_000_000
