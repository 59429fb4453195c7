import pytest

from transforms.row_texts import repeats


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a secret of the house"},
        {"tags": [None, {"of": ("a secret of the house",)}]},
        {"text": "a secret, told otherwise"},
    ],
)
def test_a_message_that_quotes_a_text_or_its_beginning_repeats_the_row(row: object) -> None:
    assert repeats("can't convert 'a secret …' to a number", row)
    assert not repeats("can't convert a value to a number", row)


def test_empty_texts_and_numbers_are_in_every_message_and_say_nothing() -> None:
    assert not repeats("1 of 2", {"text": "", "size": 1, "none": None})
