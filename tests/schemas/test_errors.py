import inspect
import re

import pytest

from schemas import errors
from schemas.errors import ConfigurationError, Problem, SwitchgearError, WorkloadError, first_line


def _drawn() -> dict[str, str]:
    """Parent of every class, as the module's docstring draws it."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        found = re.match(r"^\s*((?:[│├└─ ]{4})*)([A-Z]\w+Error)\b", line)
        if found:
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            parents[found[2]] = path[depth - 1] if depth else "Exception"
    return parents


def test_the_drawn_tree_is_the_real_one() -> None:
    classes = {n: c for n, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, Exception)}
    assert _drawn() == {name: kind.__base__.__name__ for name, kind in classes.items()}


def test_a_problem_says_where_what_and_what_to_do() -> None:
    assert str(Problem("a.b", "5", "must be 6", "set it")) == "a.b = 5: must be 6. Set it"
    assert str(Problem("a.b", "5", "must be 6")) == "a.b = 5: must be 6"


def test_a_workload_error_lists_all_problems() -> None:
    error = WorkloadError("w.toml", [Problem("a", "1", "x"), Problem("b", "2", "y")])
    assert str(error) == "w.toml: 2 problems\n  a = 1: x\n  b = 2: y"
    assert isinstance(error, ConfigurationError)
    assert isinstance(error, SwitchgearError)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (OSError(2, "gone"), "[Errno 2] gone"),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error: Exception, line: str) -> None:
    assert first_line(error) == line
