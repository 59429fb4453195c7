"""Running the `enrich` flow from a command: check first, have a Prefect API, run, say how it ended."""

from __future__ import annotations

from dataclasses import replace

from flows.parameters import EnrichParameters
from flows.server import prefect_api, quiet_prefect
from flows.steps import CheckResult, Ending, Steps, Surroundings, Watcher, bound, load_for, real_steps
from schemas.errors import SwitchgearError
from schemas.load import LoadedWorkload


def run_enrich(parameters: EnrichParameters, watcher: Watcher, steps: Steps | None = None) -> Ending:
    """Run a workload through the flow, in this process.

    The workload is checked while Prefect's server starts, and only once.

    Raises:
        ConfigurationError: something that the user must mend first.
        SwitchgearError: anything else that ended the run; its manifest may be missing.
    """
    chosen = steps or real_steps()
    loaded = load_for(parameters, chosen)  # the flow does so again; this spares the wait for a server
    checked: list[CheckResult] = []

    def check() -> None:
        checked.append(chosen.check(loaded))
        for line in checked[0].lines():
            watcher.say(line)

    def already_checked(again: LoadedWorkload) -> CheckResult:
        return checked[0] if again.source == loaded.source else chosen.check(again)

    around = Surroundings(replace(chosen, check=already_checked), watcher, Ending())
    with prefect_api(meanwhile=check):
        quiet_prefect()
        from flows.enrich import enrich

        with bound(around):
            state = enrich(parameters, return_state=True)
    if around.ending.error is not None:
        raise around.ending.error
    if around.ending.manifest is None:
        state.result(raise_on_failure=True)  # raises what broke the flow
        raise SwitchgearError(f"the run broke off: {state.message}")
    return around.ending
