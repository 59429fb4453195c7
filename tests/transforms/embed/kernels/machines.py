"""Which machines have the instructions that the kernels are made of."""

import pytest

from transforms.embed.device import cpu_flags
from transforms.embed.kernels.calls import FLAGS, TILE_FLAGS

needs_kernels = pytest.mark.skipif(
    not {*FLAGS, *TILE_FLAGS} <= cpu_flags(), reason="needs a CPU with AVX-512 and AMX; nothing to install"
)
