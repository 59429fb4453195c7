"""Which Beam runner, with which options; the unsafe ones are refused by name, with the reason."""

from __future__ import annotations

from collections.abc import Sequence

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from schemas.errors import RunnerRefusedError

DEFAULT_FLAGS = ("--runner=FnApiRunner", "--direct_running_mode=in_memory")
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
_ALLOWED = "Allowed: FnApiRunner (the default, with direct_running_mode in_memory or multi_processing)"


def pipeline_options(flags: Sequence[str]) -> PipelineOptions:
    """The options for a run: our defaults, then the user's flags.

    Raises:
        RunnerRefusedError: a runner or running mode that loses data or runs unverified code.
    """
    options = PipelineOptions([*DEFAULT_FLAGS, *flags])
    runner = str(options.view_as(StandardOptions).runner).rsplit(".", 1)[-1].lower()
    if runner in _REFUSED_RUNNERS:
        raise RunnerRefusedError(f"--runner={runner} is refused: {_REFUSED_RUNNERS[runner]}. {_ALLOWED}")
    mode = options.view_as(DirectOptions).direct_running_mode
    if mode in _REFUSED_MODES:
        raise RunnerRefusedError(
            f"--direct_running_mode={mode} is refused: {_REFUSED_MODES[mode]}. {_ALLOWED}"
        )
    return options
