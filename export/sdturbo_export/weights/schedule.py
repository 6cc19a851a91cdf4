"""The steps table: EulerDiscreteScheduler with trailing spacing for 1 to 4 steps, from `scheduler_config.json`.

Sources: diffusers `EulerDiscreteScheduler`, and Karras et al. 2022 (arXiv 2206.00364), Algorithm 2 without churn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.bundle.description import MAX_STEPS, ScheduleRow

EXPECTED = {
    "_class_name": ("EulerDiscreteScheduler",),
    "timestep_spacing": ("trailing",),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "beta_schedule": ("scaled_linear",),
    "interpolation_type": ("linear", None),
    "timestep_type": ("discrete", None),
    "final_sigmas_type": ("zero", None),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "rescale_betas_zero_snr": (False, None),
    "trained_betas": (None,),
    "sigma_min": (None,),
    "sigma_max": (None,),
}


@dataclass(frozen=True, slots=True)
class Schedule:
    """`rows` in order of (num_inference_steps, index). The UNet predicts "epsilon", "v_prediction" or "sample"."""

    rows: tuple[ScheduleRow, ...]
    prediction_type: str


def scheduler_faults(config: Mapping[str, Any]) -> list[str]:
    """The settings of a scheduler that this engine does not implement."""
    faults = [
        f"scheduler: {key} is {config.get(key)!r}, expected {' or '.join(repr(value) for value in allowed)}"
        for key, allowed in EXPECTED.items()
        if config.get(key) not in allowed
    ]
    count = config.get("num_train_timesteps")
    if not isinstance(count, int) or not MAX_STEPS <= count <= 100_000:
        faults.append(f"scheduler: num_train_timesteps is {count!r}, expected a whole number such as 1000")
    for key in ("beta_start", "beta_end"):
        if not is_number(config.get(key)) or config[key] >= 1:
            faults.append(f"scheduler: {key} is {config.get(key)!r}, expected a number between 0 and 1")
    return faults


def is_number(value: object) -> bool:
    """A finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """The table for 1 to 4 steps, the same bits on every machine.

    diffusers computes it with torch, whose float32 linspace differs in the last bits from one CPU to another.
    """
    count = config["num_train_timesteps"]
    betas = _linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, count) ** 2
    alphas_cumprod = np.cumprod(np.float32(1) - betas, dtype=np.float64).astype(np.float32)
    sigmas = np.sqrt((np.float32(1) - alphas_cumprod) / alphas_cumprod)
    rows: list[ScheduleRow] = []
    for n in range(1, MAX_STEPS + 1):
        timesteps = np.round(np.arange(count, 0, -count / n)).astype(np.int64) - 1
        run = [*sigmas[timesteps].tolist(), 0.0]
        rows += [ScheduleRow(n, i, int(t), run[i], run[i + 1]) for i, t in enumerate(timesteps)]
    return Schedule(tuple(rows), config["prediction_type"])


def _linspace(start: float, end: float, count: int) -> NDArray[np.float32]:
    """torch.linspace in float32 without fused operations. Each point counts from the end that is nearer."""
    first, last, i = np.float32(start), np.float32(end), np.arange(count, dtype=np.float32)
    step = (last - first) / np.float32(count - 1)
    return np.where(i < count // 2, first + step * i, last - step * (np.float32(count - 1) - i))


def step_coefficients(schedule: Schedule) -> NDArray[np.float32]:
    """float32 (rows, 3): (c_in, a, b) with model input c_in·x and update x' = a·x + b·out.

    c_in = 1/√(σ²+1). epsilon: a = 1, b = σ' - σ. v_prediction, x0 = x/(σ²+1) - v·σ/√(σ²+1) and x' = x + (x - x0)/σ·(σ' - σ):
    a = 1 + (σ' - σ)/σ·(1 - 1/(σ²+1)), b = (σ' - σ)/√(σ²+1). sample, x0 itself: a = σ'/σ, b = 1 - σ'/σ.
    """
    sigma = np.array([row.sigma for row in schedule.rows])
    delta = np.array([row.sigma_next for row in schedule.rows]) - sigma
    c_in = 1 / np.sqrt(sigma**2 + 1)
    if schedule.prediction_type == "epsilon":
        a, b = np.ones_like(sigma), delta
    elif schedule.prediction_type == "sample":
        a, b = 1 + delta / sigma, -delta / sigma
    else:
        a, b = 1 + delta / sigma * (1 - 1 / (sigma**2 + 1)), delta * c_in
    return np.stack([c_in, a, b], axis=1).astype(np.float32)
