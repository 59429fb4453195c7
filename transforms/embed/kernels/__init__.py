"""The CPU's own kernels: a layer of a BERT encoder in four calls that XLA makes, compiled by LLVM.

`emit` is the vocabulary, `panels`, `tiles` and `attention` are the kernels, `handler` is how XLA calls
them, `calls` is how JAX does. No compiler is needed: LLVM comes as a wheel, and a kernel takes some
tens of milliseconds.
"""
