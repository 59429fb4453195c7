"""Kernels made into machine code once a process, and known to XLA by their names."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache

import jax
from llvmlite import binding as llvm
from llvmlite import ir

_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILE_DATA = 158, 0x1023, 18  # Linux, x86-64
_LOCK = threading.Lock()
_KNOWN: dict[str, llvm.ExecutionEngine] = {}
_CAPSULE = ctypes.pythonapi.PyCapsule_New
_CAPSULE.restype = ctypes.py_object
_CAPSULE.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


def make_known(name: str, write: Callable[[], ir.Module]) -> str:
    """Compiles a kernel and registers it with XLA, unless that was done; gives its name."""
    with _LOCK:
        if name not in _KNOWN:
            may_use_tiles()
            engine = compiled(write())
            capsule = _CAPSULE(engine.get_function_address(name), None, None)
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")
            _KNOWN[name] = engine  # keeps the code
    return name


def compiled(module: ir.Module) -> llvm.ExecutionEngine:
    """The module's machine code, for this very CPU."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features + ",-prefer-256-bit", opt=3
    )
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = False
    passes = llvm.create_pass_builder(target, options)
    passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, target)
    engine.finalize_object()
    return engine


@cache
def may_use_tiles() -> bool:
    """Whether Linux lets this process use the tile registers; it must be asked once."""
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILE_DATA) == 0
