"""How XLA calls a kernel: its foreign function interface, in LLVM's IR.

The offsets are those of `xla/ffi/api/c_api.h` (API version 0.x, in jaxlib's include folder), whose
structs only ever grow at their ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from transforms.embed.kernels import VERSION
from transforms.embed.kernels.emit import I8, I32, I64, POINTER, Emit, i64

API_VERSION = (0, 3)
PREFIX = f"switchgear{VERSION}"  # of the kernels' names
_FRAME_EXTENSION, _FRAME_ARGUMENTS, _FRAME_RESULTS = 8, 72, 112
_EXTENSION_METADATA = 24
_METADATA_MAJOR, _METADATA_MINOR, _METADATA_TRAITS = 24, 28, 32
_BUFFER_DATA, _BUFFER_DIMENSIONS = 24, 40


@dataclass(frozen=True, slots=True)
class Buffers:
    """A call's arrays: where they lie, and the leading dimension of the first."""

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    leading: Any


def write_handler(name: str, inputs: int, outputs: int, body: Callable[[Emit, Buffers], None]) -> ir.Module:
    """A module with one function, `XLA_FFI_Error* name(XLA_FFI_CallFrame*)`, that never fails."""
    module = ir.Module(name)
    module.triple = ""
    function = ir.Function(module, ir.FunctionType(POINTER, [POINTER]), name)
    frame = function.args[0]
    emit = Emit(function.append_basic_block("entry"))
    extension = _field(emit, frame, _FRAME_EXTENSION)
    asked, called = (emit.append_basic_block(part) for part in ("asked", "called"))
    emit.cbranch(emit.icmp_unsigned("!=", extension, ir.Constant(POINTER, None)), asked, called)
    emit.position_at_end(asked)  # XLA wants to know the version that the handler was written for
    metadata = _field(emit, extension, _EXTENSION_METADATA)
    for offset, value in (
        (_METADATA_MAJOR, API_VERSION[0]),
        (_METADATA_MINOR, API_VERSION[1]),
        (_METADATA_TRAITS, 0),
    ):
        emit.store(ir.Constant(I32, value), emit.at(metadata, I8, offset))
    emit.ret(ir.Constant(POINTER, None))
    emit.position_at_end(called)
    arguments, results = (_field(emit, frame, at) for at in (_FRAME_ARGUMENTS, _FRAME_RESULTS))
    first = _field(emit, arguments, 0)
    leading = emit.load(_field(emit, first, _BUFFER_DIMENSIONS), typ=I64)
    buffers = Buffers(
        tuple(_field(emit, _field(emit, arguments, 8 * i), _BUFFER_DATA) for i in range(inputs)),
        tuple(_field(emit, _field(emit, results, 8 * i), _BUFFER_DATA) for i in range(outputs)),
        leading,
    )
    body(emit, buffers)
    emit.ret(ir.Constant(POINTER, None))
    return module


def _field(emit: Emit, struct: Any, offset: int) -> Any:
    return emit.load(emit.gep(struct, [i64(offset)], source_etype=I8), typ=POINTER)
