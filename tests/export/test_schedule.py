import json
from importlib.resources import files

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler

from sdturbo_export.weights.schedule import schedule_from_config, scheduler_faults, step_coefficients

CONFIG = json.loads(files("sdturbo_export").joinpath("configs/sd-turbo/scheduler/scheduler_config.json").read_bytes())
TABLE = {
    1: ([999], [14.614646911621094, 0]),
    2: ([999, 499], [14.614646911621094, 1.6128870248794556, 0]),
    3: ([999, 666, 332], [14.614646911621094, 2.9183084964752197, 0.9292147159576416, 0]),
    4: ([999, 749, 499, 249], [14.614646911621094, 4.081730842590332, 1.6128870248794556, 0.6932054162025452, 0]),
}


@pytest.mark.parametrize("steps", TABLE)
def test_sd_turbo_table_to_the_bit(steps):
    rows = [row for row in schedule_from_config(CONFIG).rows if row.num_inference_steps == steps]
    timesteps, sigmas = TABLE[steps]
    assert [row.timestep for row in rows] == timesteps
    assert [row.sigma for row in rows] == sigmas[:-1]
    assert [row.sigma_next for row in rows] == sigmas[1:]
    assert [row.index for row in rows] == list(range(steps))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_coefficients_give_the_step_of_diffusers(prediction_type):
    config = CONFIG | {"prediction_type": prediction_type}
    schedule = schedule_from_config(config)
    scheduler = EulerDiscreteScheduler.from_config(config)
    x, out = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for row, (c_in, a, b) in zip(schedule.rows, step_coefficients(schedule), strict=True):
        scheduler.set_timesteps(row.num_inference_steps)
        scheduler.set_begin_index(row.index)
        t = scheduler.timesteps[row.index]
        assert int(t) == row.timestep
        latents = x * row.sigma
        torch.testing.assert_close(latents * c_in, scheduler.scale_model_input(latents, t), rtol=1e-5, atol=1e-6)
        expected = scheduler.step(out, t, latents).prev_sample
        torch.testing.assert_close(latents * a + out * b, expected, rtol=1e-4, atol=1e-4)


def test_other_noise_range_follows_the_config():
    sigmas = [row.sigma for row in schedule_from_config(CONFIG | {"beta_end": 0.02}).rows]
    scheduler = EulerDiscreteScheduler.from_config(CONFIG | {"beta_end": 0.02})
    scheduler.set_timesteps(4)
    np.testing.assert_allclose(sigmas[6:], scheduler.sigmas[:-1], rtol=1e-5)
    assert sigmas[0] > 14.7


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "PNDMScheduler"),
        ("timestep_spacing", "leading"),
        ("prediction_type", "flow_prediction"),
        ("use_karras_sigmas", True),
        ("beta_schedule", "squaredcos_cap_v2"),
    ],
)
def test_scheduler_that_is_not_implemented_is_named(key, value):
    (fault,) = scheduler_faults(CONFIG | {key: value})
    assert key in fault
    assert repr(value) in fault
