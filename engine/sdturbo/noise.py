"""`torch.randn` on a CPU generator, bit for bit, in numpy.

PyTorch seeds the generator MT19937 and takes the low 24 bits of each draw as a uniform. Box-Muller turns blocks of 16
uniforms into 16 normals (ATen `normal_fill_AVX2`), with the polynomial log and sincos of avx_mathfun. The same float32
operations in the same order, fused multiply-adds included, give the same bits on any machine.

Sources: PyTorch, aten/src/ATen/native/cpu/DistributionTemplates.h (BSD-3-Clause). avx_mathfun.h, Giovanni Garberoglio
after Julien Pommier's sse_mathfun (zlib licence).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.random import RandomState  # at import: numpy loads it lazily, which took 10 ms of the first picture
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def _constants(*values: float) -> F64:
    """Constants of the C code, rounded to float32 as there, for `_fma`."""
    return np.array(values, np.float32).astype(np.float64)


_LOG_COEFFICIENTS = _constants(
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_LN2_PART, _MINUS_HALF = _constants(0.693359375, -0.5)
_PI_4_PARTS = _constants(-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)
_COS_COEFFICIENTS = _constants(2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_SIN_COEFFICIENTS = _constants(-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_f = np.float32


class TorchGenerator:
    """`randn` in float32 of a `torch.Generator` on the CPU.

    seed: 0 to 2⁶⁴−1. MT19937 takes the low 32 bits. Seeds that differ by a multiple of 2³² draw the same, in torch too.
    """

    def __init__(self, seed: int) -> None:
        self._mt19937 = RandomState(seed & 0xFFFFFFFF)  # init_genrand, as at::mt19937

    def seed(self, seed: int) -> None:
        """Begin again with another seed, a fiftieth of the time of a new generator."""
        self._mt19937.seed(seed & 0xFFFFFFFF)

    def randn(self, shape: Sequence[int]) -> F32:
        """Standard normals in float32. Raises ValueError below 16 values, where torch takes another path."""
        size = int(np.prod(shape))
        if size < 16:
            raise ValueError(f"randn of {size} values: torch draws fewer than 16 in another way. Ask for 16 or more.")
        uniform = self._uniform(size)
        blocks = size // 16 * 16
        out = np.empty(size, np.float32)
        out[:blocks] = _box_muller(uniform[:blocks].reshape(-1, 16)).reshape(-1)
        if size % 16:  # the last 16 are drawn anew
            out[-16:] = _box_muller(self._uniform(16).reshape(1, 16)).reshape(-1)
        return out.reshape(tuple(shape))

    def _uniform(self, size: int) -> F32:
        bits = np.frombuffer(self._mt19937.bytes(4 * size), "<u4")
        return (bits & np.uint32(0xFFFFFF)).astype(np.float32) * _f(2.0**-24)


_generators = threading.local()  # one per thread


def randn(seeds: Sequence[int], shape: Sequence[int], *, draws: int = 1) -> list[F32]:
    """Batches of standard normals, each (N, *shape[1:]). Row i is drawn for seeds[i], as if it were drawn alone.

    shape: of one row, (1, 4, H/8, W/8). draws: the number of batches. They follow one another in each seed's generator.
    """
    generator = _generators.generator = getattr(_generators, "generator", None) or TorchGenerator(0)
    rows: list[list[F32]] = []
    for seed in seeds:
        generator.seed(seed)
        rows.append([generator.randn(shape) for _ in range(draws)])
    return [np.concatenate(batch) for batch in zip(*rows, strict=True)]


def _box_muller(uniform: F32) -> F32:
    """(n, 16) uniforms -> (n, 16) normals: column j gives the radius, column j + 8 the angle."""
    radius = np.sqrt(_f(-2) * _log(_f(1) - uniform[:, :8]))
    sin, cos = _sincos(_f(6.283185307179586) * uniform[:, 8:])
    normals = np.empty_like(uniform)
    np.multiply(radius, cos, out=normals[:, :8])
    np.multiply(radius, sin, out=normals[:, 8:])
    normals += _f(0)  # fma(n, std=1, mean=+0) turns -0 into +0
    return normals


def _wide(x: F32) -> F64:
    """x for `_fma`, which multiplies in float64."""
    return x.astype(np.float64)


def _fma(a: F64, b: F64 | np.float64, c: F32 | np.float64) -> F32:
    """a·b + c rounded once to float32. All are float32 numbers. Their product is exact in float64: 24 + 24 bits fit in 53.

    The sum is rounded to float64 and then to float32. That differs from rounding once only where the first rounding lands on
    the middle between two float32, whose last 29 bits are a one and zeros. There the sum is rounded to odd instead.
    """
    product = a * b
    total = product + c
    rounded = total.astype(np.float32)
    middle = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
    if middle.any():
        addend = np.broadcast_to(np.asarray(c, np.float64), total.shape)
        rounded[middle] = _round_to_odd(product[middle], addend[middle])
    return rounded


def _round_to_odd(product: F64, addend: F64) -> F32:
    """product + addend, rounded to odd in float64 and then to float32.

    Source: Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd"
    (2008).
    """
    total = product + addend
    split = total - product
    error = (product - (total - split)) + (addend - split)  # TwoSum: exact
    bits = total.view(np.int64)
    inexact_even = (error != 0) & ((bits & 1) == 0)
    away = np.where((error > 0) == (total > 0), 1, -1)
    return (bits + np.where(inexact_even, away, 0)).view(np.float64).astype(np.float32)


def _log(x: F32) -> F32:
    """avx_mathfun `log256_ps` for x > 0: exponent apart, minimax polynomial on [√½, √2)."""
    x = np.maximum(x, _f(1.1754943508222875e-38))
    bits = x.view(np.uint32)
    exponent = (bits >> np.uint32(23)).astype(np.float32) - _f(127) + _f(1)
    mantissa = ((bits & np.uint32(0x807FFFFF)) | np.uint32(0x3F000000)).view(np.float32)
    small = mantissa < _f(0.707106781186547524)
    exponent = exponent - small.astype(np.float32)
    x = (mantissa - _f(1)) + mantissa * small
    wide, z = _wide(x), _wide(x * x)
    y = _fma(wide, _LOG_COEFFICIENTS[0], _LOG_COEFFICIENTS[1])
    for coefficient in _LOG_COEFFICIENTS[2:]:
        y = _fma(_wide(y), wide, coefficient)
    y = _fma(_wide(y * x), z, exponent * _f(-2.12194440e-4))
    y = _fma(z, _MINUS_HALF, y)
    return _fma(_wide(exponent), _LN2_PART, x + y)


def _sincos(x: F32) -> tuple[F32, F32]:
    """avx_mathfun `sincos256_ps` for x >= 0: reduction by π/4 in three parts, two polynomials, octant logic."""
    octant = ((x * _f(1.27323954473516)).astype(np.int32) + 1) & ~1
    quotient = octant.astype(np.float64)
    for part in _PI_4_PARTS:
        x = _fma(quotient, part, x)
    squares: F32 = x * x
    z = _wide(squares)
    cos = _fma(z, _COS_COEFFICIENTS[0], _COS_COEFFICIENTS[1])
    cos = _fma(_wide(cos), z, _COS_COEFFICIENTS[2]) * squares
    cos = _fma(_wide(cos), z, squares * _f(-0.5)) + _f(1)
    sin = _fma(z, _SIN_COEFFICIENTS[0], _SIN_COEFFICIENTS[1])
    sin = _fma(_wide(sin), z, _SIN_COEFFICIENTS[2]) * squares
    sin = _fma(_wide(sin), _wide(x), x)
    straight = (octant & 2) == 0
    sin, cos = np.where(straight, sin, cos), np.where(straight, cos, sin)
    return _negated(sin, octant & 4), _negated(cos, ~(octant - 2) & 4)


def _negated(x: F32, bit: NDArray[np.int32]) -> F32:
    """-x where `bit` is 4, x where it is 0."""
    return (x.view(np.int32) ^ (bit << 29)).view(np.float32)
