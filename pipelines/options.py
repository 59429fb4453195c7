"""Which Beam runner, with which options; the unsafe ones are refused by name, with the reason."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.version import __version__ as beam_version

from pipelines.dataflow import Tpu
from pipelines.engines import Engine, engine_flags
from schemas.errors import ConfigurationError, RunnerRefusedError

_REFUSED_RUNNERS = {
    "": "Beam would take its default, which may download and start an unverified executable",
    "directrunner": "it may download and start an unverified executable, and changes its engine with the "
    "features that are used",
    "switchingdirectrunner": "it may download and start an unverified executable",
    "prismrunner": "it downloads and starts an unverified executable",
    "bundlebaseddirectrunner": "it is not what the tests of this project run on",
    "daskrunner": "it loses what is emitted at the end of a bundle, and mixes tagged outputs",
    "interactiverunner": "it is made for notebooks and keeps every intermediate value",
}
_REFUSED_MODES = {
    "multi_threading": "it silently loses elements (an unlocked flush in Beam's data plane)",
}
_ALLOWED = (
    "Allowed: FnApiRunner (the default, with direct_running_mode in_memory or multi_processing) and the "
    "runners of the engines (--engine)"
)


@contextmanager
def _log_left_alone() -> Iterator[None]:
    """Take back what Beam's options do to the process's log where nobody has set it up yet.

    All of Prefect's lines would stand on a launcher's terminal.
    """
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in before]:
            root.removeHandler(handler)


@_log_left_alone()
def pipeline_options(
    flags: Sequence[str], engine: Engine = "local", tpu: Tpu | None = None
) -> PipelineOptions:
    """The options for a run on an engine: the engine's flags, then the user's.

    Raises:
        RunnerRefusedError: a runner or running mode that loses data or runs unverified code.
        ConfigurationError: a flag that Beam does not know, and would silently leave out, or an engine
            of which something is missing.
    """
    options = PipelineOptions([*engine_flags(engine, flags, tpu=tpu)])
    _refuse_unknown(options)
    _refuse_space(options)
    runner = str(options.view_as(StandardOptions).runner).rsplit(".", 1)[-1].lower()
    if runner in _REFUSED_RUNNERS:
        raise RunnerRefusedError(f"--runner={runner} is refused: {_REFUSED_RUNNERS[runner]}. {_ALLOWED}")
    mode = options.view_as(DirectOptions).direct_running_mode
    if mode in _REFUSED_MODES:
        raise RunnerRefusedError(
            f"--direct_running_mode={mode} is refused: {_REFUSED_MODES[mode]}. {_ALLOWED}"
        )
    return options


def _refuse_space(options: PipelineOptions) -> None:
    multiple = options.view_as(DirectOptions).direct_running_mode == "multi_processing"
    if multiple and " " in sys.executable:
        raise ConfigurationError(
            f"--direct_running_mode=multi_processing: Beam can't start workers with {sys.executable}, "
            "because of the space in that path; make the environment elsewhere, or leave the flag out and "
            "use --workers"
        )


def works_here(options: PipelineOptions) -> bool:
    """Whether the batches are worked on in this process, so that it hears of them directly."""
    runner = str(options.view_as(StandardOptions).runner).rsplit(".", 1)[-1].lower()
    if runner == "fnapirunner":
        return options.view_as(DirectOptions).direct_running_mode == "in_memory"
    return options.view_as(PortableOptions).environment_type == "LOOPBACK"


def _refuse_unknown(options: PipelineOptions) -> None:
    known = options.get_all_options(drop_default=True)
    unknown = sorted(options.get_all_options(drop_default=True, retain_unknown_options=True).keys() - known)
    if unknown:
        names = ", ".join(f"--{name}" for name in unknown)
        raise ConfigurationError(
            f"Beam {beam_version} has no flag {names}. Flags after -- are Beam's pipeline options, written "
            "--name=value"
        )
