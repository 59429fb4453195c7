"""Keys from the Prefect server's Secret blocks, by name: for runs of a deployment, whose worker has none.

A key variable that is not in the environment is looked for in a Secret block: `OPENAI_API_KEY` in
`openai-api-key`. It is put into the environment of the flow run's own process, from which its workers
inherit it, and nowhere else: no parameter, file, log or command line ever holds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, MutableMapping

from schemas.workload import Workload
from transforms.call.secret import key_variable

Read = Callable[[str], str | None]


def block_name(variable: str) -> str:
    """The block of a key variable: `openai-api-key` for `OPENAI_API_KEY`."""
    return variable.lower().replace("_", "-")


def keys_from_blocks(
    workload: Workload, environ: MutableMapping[str, str] = os.environ, read: Read | None = None
) -> list[str]:
    """Fill in missing keys from blocks; the variables that were filled. Outside a flow run, nothing."""
    if read is None:
        if not _in_flow_run():
            return []
        read = _read_block
    filled = []
    for variable in _missing(workload, environ):
        value = read(block_name(variable))
        if value:
            environ[variable] = value
            filled.append(variable)
    return filled


def _missing(workload: Workload, environ: MutableMapping[str, str]) -> Iterable[str]:
    names = {key_variable(backend) for backend in workload.hosted_backends().values()}
    return sorted(name for name in names if name and not environ.get(name))


def _in_flow_run() -> bool:
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


def _read_block(name: str) -> str | None:
    """The value of a Secret block; None if there is none of that name."""
    from prefect.blocks.system import Secret

    try:
        block = Secret.load(name)
    except ValueError:
        return None
    value = block.get() if isinstance(block, Secret) else None
    return value if isinstance(value, str) else None
