"""The TPU's compiler on a host without a TPU: where it is, and a process of its own to run it in."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from schemas.errors import ConfigurationError

Answer = dict[str, Any]
Compile = Callable[[dict[str, Any]], list[Answer]]
"""Hands a request to the compiler; one answer for each of its shapes, see `ahead`."""

LIBRARY_VARIABLE = "TPU_LIBRARY_PATH"
SECONDS_A_PROGRAM = 1200
_HERE = Path(__file__).resolve().parents[2]
TPU_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # no chip is opened, so several may compile at a time
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # of this host; the topology that is compiled for is another's
}


def find_libtpu(environment: Mapping[str, str] = os.environ, checkout: Path = _HERE) -> Path:
    """The TPU's compiler: `$TPU_LIBRARY_PATH`, the installed package, or what `make tpu` put in place.

    Raises:
        ConfigurationError: there is none; says how to get it.
    """
    named = environment.get(LIBRARY_VARIABLE)
    if named:
        if Path(named).is_file():
            return Path(named)
        raise ConfigurationError(f"{LIBRARY_VARIABLE} = {named!r}: no such file")
    spec = importlib.util.find_spec("libtpu")
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    for folder in (*folders, checkout / "build" / "tpu" / "libtpu"):
        if (folder / "libtpu.so").is_file():
            return folder / "libtpu.so"
    raise ConfigurationError(
        "libtpu, the TPU's compiler, is not installed (it is not part of the default install: 700 MB). In a "
        "checkout: `make tpu`. Elsewhere: install the wheel with its extra `tpu`, best in an environment of "
        f"its own, and set {LIBRARY_VARIABLE} to its libtpu/libtpu.so"
    )


def compile_in_a_process(library: Path, say: Callable[[str], None]) -> Compile:
    """The compiler in a process of its own for each request, so that its environment stays there."""

    def compile_(request: dict[str, Any]) -> list[Answer]:
        shapes = request["shapes"]
        say(f"compiling for {request['topology']}: {len(shapes)} program(s), 10 to 90 seconds each")
        environment = {**os.environ, **TPU_ENVIRONMENT, LIBRARY_VARIABLE: str(library)}
        environment.pop("XLA_FLAGS", None)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "transforms.embed.ahead"],
                input=json.dumps(request),
                capture_output=True,
                text=True,
                timeout=SECONDS_A_PROGRAM * len(shapes),
                env=environment,
                cwd=_HERE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ConfigurationError(
                f"{request['topology']}: not compiled within {SECONDS_A_PROGRAM * len(shapes)} s"
            ) from None
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode or len(answers) != len(shapes):
            last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            raise ConfigurationError(f"{request['topology']}: the compiler died: {last[0][:500]}")
        return answers

    return compile_
