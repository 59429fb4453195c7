"""The CPU's own kernels: a layer of a BERT encoder in four calls that XLA makes, compiled by LLVM.

`emit` is the vocabulary, `panels` are the dense layers (in bfloat16 `dense_tiles`, on `tiles`), `attention`
is attention, `ends` is what comes before and after the layers; `handler` is how XLA calls them, `calls` is
how JAX does. No compiler is needed: LLVM comes as a wheel, and a kernel takes some tens of milliseconds.
"""

VERSION = 2
"""Of what the kernels compute and how they lay it out; a change of either is a new one.

It is part of their names, so that no compiled program calls another's, and of what the accuracy of
bfloat16 was measured for.
"""
