"""The errors that Switchgear raises, in one tree.

::

    SwitchgearError
    ├── ConfigurationError        the user can mend it before anything runs (exit code 2)
    │   ├── WorkloadError         the workload file: file, key path, value, what is allowed
    │   ├── InputError            the input documents: missing, not Parquet, wrong columns
    │   ├── OutputError           the output folder: another workload's, changed input
    │   │   └── OutputBusyError   another run is at work in it
    │   ├── MissingSecretError    the environment variable of a key is not set
    │   ├── RunnerRefusedError    a Beam runner or mode that loses data
    │   └── ModelError            weights or tokenizer that can't be used
    ├── BatchError                one batch can't be worked on; nothing of it is committed
    │   ├── InputChangedError     the file is no longer the one that was planned
    │   ├── UnreadableBatchError  the file's pages can't be read
    │   └── BatchClaimedError     another worker holds the batch
    ├── ReconcileError            rows in ≠ results + failures: a defect of ours, nothing is committed
    ├── StoreError                the store refused or lost an operation
    │   └── PreconditionFailedError   the object is not at the generation that was expected
    ├── LedgerError               a ledger that can't be opened or written
    └── ReviewNeededError         a person has to approve the run, and nobody can be asked here

A trouble of one document is no exception but a failure row: see `schemas.failures`.
"""

from __future__ import annotations

from dataclasses import dataclass


class SwitchgearError(Exception):
    """Base of every error that Switchgear raises on purpose."""


class ConfigurationError(SwitchgearError):
    """Something that the user can mend before anything is read or paid."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a workload file.

    `where` is the key path (`routes[1].backends[0]`), `value` what stands there, `allowed`
    what may stand there and `hint` what to do next.
    """

    where: str
    value: str
    allowed: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where} = {self.value}: {self.allowed}"
        return f"{text}. {self.hint[0].upper()}{self.hint[1:]}" if self.hint else text


class WorkloadError(ConfigurationError):
    """The workload file is wrong; lists every problem that was found, not only the first."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems
        lines = "\n".join(f"  {problem}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{file}: {count}\n{lines}")


class InputError(ConfigurationError):
    """The input documents can't be used as they are."""


class OutputError(ConfigurationError):
    """The output folder can't be used for this run."""


class OutputBusyError(OutputError):
    """Another run is at work in the output folder."""


class MissingSecretError(ConfigurationError):
    """A key's environment variable is not set."""


class RunnerRefusedError(ConfigurationError):
    """A Beam runner or running mode that is known to lose data."""


class ModelError(ConfigurationError):
    """A model's files can't be used: unsupported, incomplete, damaged."""


class BatchError(SwitchgearError):
    """One batch can't be worked on; nothing of it is committed and a rerun tries it again."""


class InputChangedError(BatchError):
    """The input file is not the one that was planned."""


class UnreadableBatchError(BatchError):
    """The input file's pages can't be read."""


class BatchClaimedError(BatchError):
    """Another worker is on this batch."""


class ReconcileError(SwitchgearError):
    """Rows in and rows out don't agree: a defect of ours. Nothing is committed."""


class StoreError(SwitchgearError):
    """The store refused or lost an operation."""


class PreconditionFailedError(StoreError):
    """The object is not at the generation that was expected."""


class LedgerError(SwitchgearError):
    """A ledger can't be opened or written."""


class ReviewNeededError(SwitchgearError):
    """A person has to approve the run before it goes on, and it has no form to ask with."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a sentence; its type when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
