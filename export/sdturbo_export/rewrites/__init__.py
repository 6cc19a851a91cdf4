"""Exact changes of a stage before it is exported: one a file, its formula in the docstring, its own test.

A rewrite takes a stage's graph module and changes it in place, after LoRAs were fused into its weights and before the
float16 form is made. The reference that parity is measured against is left as is. README.md here has what each one gains.
"""

from __future__ import annotations

from collections.abc import Collection

from sdturbo.errors import InvalidRequest

# name -> the stages it changes, in the order of application
REWRITES = {
    "time-tables": ("denoiser",),
    "upsample": ("denoiser", "decoder"),
    "group-norm": ("denoiser", "decoder", "encoder"),
    "geglu": ("denoiser",),
}
_FP32_ONLY = ("group-norm", "geglu")  # GPU engines, which fp16 is for, have kernels of their own for these


def rewrites_of(stage: str, precision: str, without: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the rewrites that `stage` gets in that precision of its graph.

    Raises InvalidRequest if `without` names one that does not exist.
    """
    if unknown := sorted(set(without) - set(REWRITES)):
        raise InvalidRequest(f"Got rewrites {', '.join(unknown)} to leave out; expected {', '.join(REWRITES)}.")
    left_out = {*without, *(_FP32_ONLY if precision != "fp32" else ())}
    return tuple(name for name, stages in REWRITES.items() if stage in stages and name not in left_out)
