"""What the compiled CPU kernels share: their floating-point rules, exp, and bfloat16 as 16-bit integers.

Compiled kernels are kept on disk under the hash of the file that they stand in: after a change here, delete the `.nbi`
files beside the modules that use it.
"""

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

# Sums may be reordered and products fused, as a compiler must to use vector units; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # ln 2 in two parts, so that x − k ln 2 is exact to np.float32
_LN2_LOW = np.float32(-2.12194440e-4)


@njit(inline="always", fastmath=FASTMATH)
def exp(x: Any) -> Any:
    """exp(x) in float32 to about 1 ulp for x ≤ 0 (arguments here never exceed 0), written so that loops over it
    vectorise."""
    x = max(x, np.float32(-88.0))  # from −87.7 down 2^k is 0, and so is the result
    k = np.floor(x * _LOG2_E + np.float32(0.5))
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    power = np.int32((np.int32(k) + np.int32(127)) << np.int32(23))  # the bits of 2^k
    return p * power.view(np.float32)


@njit(inline="always", fastmath=FASTMATH)
def read_bfloat16(x: Any) -> Any:
    """float32 of a bfloat16 that comes as an int16: numba has no such type."""
    return np.int32(np.int32(x) << np.int32(16)).view(np.float32)


@njit(inline="always", fastmath=FASTMATH)
def write_bfloat16(x: Any) -> Any:
    """The nearest bfloat16 of a finite float32, ties to even, as an int16."""
    bits = np.float32(x).view(np.int32)
    return np.int16((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16))


def read(x):
    """float32 of an entry of a row: of float32, or of int16, which is a bfloat16."""


def write(row, v, x):
    """row[v] = x, in the row's own kind."""


@overload(read, inline="always")
def _read(x):
    if isinstance(x, types.Integer):
        return lambda x: read_bfloat16(x)
    return lambda x: x


@overload(write, inline="always")
def _write(row, v, x):  # noqa: ARG001 (numba matches signatures, annotations included)
    if isinstance(row.dtype, types.Integer):

        def put(row, v, x):
            row[v] = write_bfloat16(x)
    else:

        def put(row, v, x):
            row[v] = np.float32(x)

    return put
