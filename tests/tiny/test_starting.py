"""Start pictures, and what the model is to make of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.tiny.starting import FLAT, PATCHED, draw_starts, followed, low
from training.tiny.starts import Starts


def test_start_pictures_are_of_three_kinds_and_repeat():
    starts, others = Starts().pictures(6), Starts(held_out=True).pictures(6)
    assert starts.shape == (6, 512, 512, 3)
    assert np.array_equal(starts, Starts().pictures(6))
    assert all(a.tobytes() != b.tobytes() for a, b in zip(starts, others, strict=True))
    steps = [np.abs(np.diff(picture.astype(int), axis=1)) for picture in starts]
    assert all(step.max() > 100 for step in steps[::3])  # strokes have edges
    assert all(step.max() < 16 for step in steps[1::3])  # gradients have none


@pytest.mark.parametrize("sigma", [0.69, 1.61, 4.08])
def test_where_start_and_prompt_agree_the_picture_stays(sigma):
    generator = torch.Generator().manual_seed(0)
    drawn, subjects = torch.randn(2, 4, 64, 64, generator=generator), torch.rand(2, 1, 64, 64, generator=generator)
    torch.testing.assert_close(followed(drawn, drawn, subjects, sigma), drawn)


def test_more_noise_leaves_less_of_the_start_picture():
    generator = torch.Generator().manual_seed(0)
    start = low(torch.randn(1, 4, 64, 64, generator=generator), 2.0) * 5
    drawn, subjects = torch.zeros(1, 4, 64, 64), torch.zeros(1, 1, 64, 64)
    subjects[..., 20:40, 20:40] = 1
    errors, inside = [], []
    for sigma in (0.69, 0.93, 1.61, 2.92, 4.08):
        target = followed(start, drawn, subjects, sigma)
        errors.append((target - start).square().mean().item())
        inside.append(target[..., 20:40, 20:40].square().mean().item())
    assert errors == sorted(errors)
    assert errors[0] < 0.05 * errors[-1]
    assert inside[-1] < 1e-6


@pytest.mark.parametrize("width", [0.5, 2.0, 8.0])
def test_a_gaussian_mean_keeps_what_is_flat_and_dims_what_is_fine(width):
    flat = torch.full((1, 4, 64, 64), 3.0)
    torch.testing.assert_close(low(flat, width), flat)
    checks = torch.ones(1, 4, 64, 64)
    checks[..., ::2, :] = -1
    weights = np.exp(-0.5 * (np.arange(-40, 41) / width) ** 2)
    expected = abs((weights * (-1.0) ** np.arange(81)).sum() / weights.sum())  # of a wave of two pixels
    assert low(checks, width)[0, 0, 32, 32].abs().item() == pytest.approx(expected, abs=0.02)


def test_some_start_pictures_are_flat_or_patched():
    pictures = np.random.default_rng(1).standard_normal((5, 4, 64, 64)).astype(np.float16)
    drawn = draw_starts(pictures, 400, np.random.default_rng(0)).numpy()
    flat = (drawn.std((2, 3)) < 1e-3).all(1)
    whole = (drawn[:, None] == pictures.astype(np.float32)).all((2, 3, 4)).any(1)
    assert flat.mean() == pytest.approx(FLAT, abs=0.06)
    assert (~flat & ~whole).mean() == pytest.approx(PATCHED, abs=0.06)
