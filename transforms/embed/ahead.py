"""Compiles a model's step ahead of time for a TPU that this host doesn't have. A program of its own.

    python -m transforms.embed.ahead < request.json

The request names backend, folder, topology, dtype and shapes; each shape is answered by a line of JSON
with what the compiler says of it. The process has its environment to itself (`device_plan` starts it):
libtpu reads it when JAX is imported, and would make a later `jax.devices()` wait for chips.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from schemas.backends import EmbedderBackend
from transforms.embed.execution import DATA_AXIS, MODEL_AXIS, Execution, choose_kernel
from transforms.embed.outline import ModelOutline, Outline, outline_model, parameter_outlines
from transforms.embed.program import Head, spread, step_program
from transforms.embed.sharding import parameter_specs

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([0-9.]+)([KMGT]?)"
_OUT_OF_MEMORY = (
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"[Uu]sed {_SIZE} of {_SIZE} hbm"),
)


def compile_shape(
    model: ModelOutline, mesh: Mesh, dtype: str, shape: tuple[int, int, int]
) -> dict[str, float | int | str]:
    """What the compiler says of one program: `shape` is length, rows a copy of the model, texts a row."""
    length, rows, texts = shape
    copies, parts = mesh.devices.shape
    kernel = choose_kernel("tpu", dtype, model.architecture.head_dim)
    activations = tuple(module.activation for module in model.dense)
    head = Head(model.pooling, model.normalize, model.dim, activations)
    program = step_program(model.architecture, head, Execution(kernel=kernel, parts=parts))
    outlines = parameter_outlines(model.architecture, model.dense)
    specs = parameter_specs(outlines, parts)
    params = jax.tree.map(
        lambda outline, spec: jax.ShapeDtypeStruct(
            outline.shape,
            jnp.dtype(dtype if outline.narrow else "float32"),
            sharding=NamedSharding(mesh, spec),
        ),
        outlines,
        specs,
        is_leaf=lambda each: isinstance(each, Outline),
    )
    rows_of_all = NamedSharding(mesh, P(None, DATA_AXIS))
    packed = jax.ShapeDtypeStruct((3, rows * copies, length), jnp.int32, sharding=rows_of_all)
    started = time.perf_counter()
    try:
        compiled = jax.jit(spread(program, mesh, specs, texts)).lower(params, packed).compile()
    except jax.errors.JaxRuntimeError as error:
        return read_failure(str(error))
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "kernel": kernel,
        "seconds": time.perf_counter() - started,
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }


def read_failure(message: str) -> dict[str, float | int | str]:
    """The compiler's refusal: bytes that the program needs and that there are, where it says them."""
    found = next((match for form in _OUT_OF_MEMORY if (match := form.search(message))), None)
    if found is None:
        return {"error": message[:2000]}
    needed, limit = (int(float(found[at]) * _UNITS[found[at + 1]]) for at in (1, 3))
    # Of temporaries alone the first form speaks: the parameters come on top.
    return {"temporaries" if "temporaries" in message else "needed": needed, "limit": limit}


def main() -> None:
    """Answers one request."""
    request: dict[str, Any] = json.load(sys.stdin)
    model = outline_model(EmbedderBackend(**request["backend"]), Path(request["base_dir"]))
    topology = topologies.get_topology_desc(topology_name=request["topology"], platform="tpu")
    devices = np.array(topology.devices).reshape(-1, request["backend"]["tensor_parallel"])
    mesh = Mesh(devices, (DATA_AXIS, MODEL_AXIS))
    for shape in request["shapes"]:
        answer = compile_shape(model, mesh, request["dtype"], tuple(shape))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
