"""`torch.randn` on a CPU generator, bit for bit, in numpy.

PyTorch seeds the generator MT19937 and takes the low 24 bits of each draw as a uniform. Box-Muller turns blocks of 16
uniforms into 16 normals (ATen `normal_fill_AVX2`), with the polynomial log and sincos of avx_mathfun. The same float32
operations in the same order, fused multiply-adds included, give the same bits on any machine.

Sources: PyTorch, aten/src/ATen/native/cpu/DistributionTemplates.h (BSD-3-Clause). avx_mathfun.h, Giovanni Garberoglio
after Julien Pommier's sse_mathfun (zlib licence).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

_LOG_COEFFICIENTS = np.array(
    [-1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
     -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1],
    np.float32,
)  # fmt: skip
_PI_4_PARTS = np.array([-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8], np.float32)
_f = np.float32


class TorchGenerator:
    """`randn` in float32 of a `torch.Generator` on the CPU.

    seed: 0 to 2⁶⁴−1. MT19937 takes the low 32 bits. Seeds that differ by a multiple of 2³² draw the same, in torch too.
    """

    def __init__(self, seed: int) -> None:
        self._mt19937 = np.random.RandomState(seed & 0xFFFFFFFF)  # init_genrand, as at::mt19937

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
        bits = self._mt19937.randint(0, 2**32, size=size, dtype=np.uint32)
        return (bits & np.uint32(0xFFFFFF)).astype(np.float32) * _f(2.0**-24)


def randn(seeds: Sequence[int], shape: Sequence[int], *, draws: int = 1) -> list[F32]:
    """Batches of standard normals, each (N, *shape[1:]). Row i is drawn for seeds[i], as if it were drawn alone.

    shape: of one row, (1, 4, H/8, W/8). draws: the number of batches. They follow one another in each seed's generator.
    """
    generators = [TorchGenerator(seed) for seed in seeds]
    return [np.concatenate([generator.randn(shape) for generator in generators]) for _ in range(draws)]


def _box_muller(uniform: F32) -> F32:
    """(n, 16) uniforms -> (n, 16) normals: column j gives the radius, column j + 8 the angle."""
    radius = np.sqrt(_f(-2) * _log(_f(1) - uniform[:, :8]))
    sin, cos = _sincos(_f(6.283185307179586) * uniform[:, 8:])
    return np.concatenate([radius * cos, radius * sin], axis=1) + _f(0)  # fma(n, std=1, mean=+0) turns -0 into +0


def _fma(a: F32, b: F32 | np.float32, c: F32 | np.float32) -> F32:
    """float32 a·b + c rounded once: exact product in float64, sum rounded to odd, then to float32.

    Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd" (2008).
    """
    product = np.multiply(a, b, dtype=np.float64)  # exact: 24 + 24 bits fit in 53
    addend = np.asarray(c, np.float64)
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
    x = (mantissa - _f(1)) + np.where(small, mantissa, _f(0))
    z = x * x
    y = np.full_like(x, _f(7.0376836292e-2))
    for coefficient in _LOG_COEFFICIENTS:
        y = _fma(y, x, coefficient)
    y = _fma(y * x, z, exponent * _f(-2.12194440e-4))
    y = _fma(-z, _f(0.5), y)
    return _fma(exponent, _f(0.693359375), x + y)


def _sincos(x: F32) -> tuple[F32, F32]:
    """avx_mathfun `sincos256_ps` for x >= 0: reduction by π/4 in three parts, two polynomials, octant logic."""
    octant = ((x * _f(1.27323954473516)).astype(np.int32) + 1) & ~1
    quotient = octant.astype(np.float32)
    for part in _PI_4_PARTS:
        x = _fma(quotient, part, x)
    z: F32 = x * x
    cos = _fma(z, _f(2.443315711809948e-5), _f(-1.388731625493765e-3))
    cos = _fma(cos, z, _f(4.166664568298827e-2)) * z
    cos = _fma(cos, z, -(z * _f(0.5))) + _f(1)
    sin = _fma(z, _f(-1.9515295891e-4), _f(8.3321608736e-3))
    sin = _fma(sin, z, _f(-1.6666654611e-1)) * z
    sin = _fma(sin, x, x)
    straight = (octant & 2) == 0
    sin, cos = np.where(straight, sin, cos), np.where(straight, cos, sin)
    return np.where(octant & 4, -sin, sin), np.where(~(octant - 2) & 4, -cos, cos)
