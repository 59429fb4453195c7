"""Reading a workload file: TOML in, a checked `Workload` out, or every problem at once."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from pydantic import ValidationError

from schemas.errors import Problem, WorkloadError
from schemas.references import reference_problems
from schemas.refused import refused_values
from schemas.workload import Workload


@dataclass(frozen=True, slots=True)
class LoadedWorkload:
    """A workload and where it came from. Relative addresses in it are relative to its folder."""

    workload: Workload
    path: Path
    source: bytes
    input_uri: str
    output_uri: str

    @property
    def base_dir(self) -> Path:
        """The folder that relative paths of the workload are relative to."""
        return self.path.parent


def load_workload(
    path: Path, *, input_uri: str | None = None, output_uri: str | None = None
) -> LoadedWorkload:
    """Read and check a workload file.

    `input_uri` and `output_uri` replace those of the file; they are relative to the current
    folder, as everything on a command line is.

    Raises:
        WorkloadError: the file can't be read, is not TOML or has problems; it lists all of them.
    """
    path = Path(os.path.abspath(path))
    source = _read(path)
    try:
        raw = tomllib.loads(source.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problem = Problem("file", "not TOML", str(error), "mend the file at the place that is named")
        raise WorkloadError(str(path), [problem]) from None
    try:
        workload = Workload.model_validate(raw)
    except ValidationError as error:
        raise WorkloadError(str(path), refused_values(error, raw)) from None
    problems = reference_problems(workload)
    if problems:
        raise WorkloadError(str(path), problems)
    return LoadedWorkload(
        workload=_with_absolute_folder(workload, path.parent),
        path=path,
        source=source,
        input_uri=_absolute(input_uri, Path.cwd()) or str(_absolute(workload.input.uri, path.parent)),
        output_uri=_absolute(output_uri, Path.cwd()) or str(_absolute(workload.output.uri, path.parent)),
    )


def _with_absolute_folder(workload: Workload, base: Path) -> Workload:
    folder = _absolute(workload.budget.cost_centre_folder, base)
    budget = workload.budget.model_copy(update={"cost_centre_folder": folder})
    return workload.model_copy(update={"budget": budget})


def with_budget(loaded: LoadedWorkload, amount: Decimal | None) -> LoadedWorkload:
    """The workload with another cap, which someone has approved for a run; None leaves it as it is."""
    if amount is None:
        return loaded
    budget = loaded.workload.budget.model_copy(update={"amount": amount})
    return replace(loaded, workload=loaded.workload.model_copy(update={"budget": budget}))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        problem = Problem("file", str(path), reason, "give the path of a workload file (TOML)")
        raise WorkloadError(str(path), [problem]) from None


def _absolute(uri: str | None, base: Path) -> str | None:
    if uri is None or "://" in uri:
        return uri
    return os.path.normpath(base / Path(uri).expanduser())
