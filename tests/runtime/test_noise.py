import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from sdturbo.noise import TorchGenerator, _fma, randn

SEEDS = st.integers(0, 2**64 - 1)
PINNED = "e97f3de04c7c6ba86354db4402b91d4402ede9c72aabed29a96dd7d635a798ba"  # torch 2.13, seed 42
SHAPES = st.sampled_from([(16,), (17,), (31,), (3, 5, 7), (1, 4, 8, 8), (2, 4, 8, 8), (1, 4, 64, 64)])


@given(seed=SEEDS, shapes=st.lists(SHAPES, min_size=1, max_size=4))
@example(seed=0, shapes=[(1, 4, 64, 64)] * 2)
@example(seed=2**32, shapes=[(17,)] * 3)
@example(seed=2**63, shapes=[(16,)])
@example(seed=2**64 - 1, shapes=[(1, 4, 64, 64), (31,), (1, 4, 64, 64)])
def test_consecutive_draws_equal_torch_bit_for_bit(seed, shapes):
    ours, theirs = TorchGenerator(seed), torch.Generator().manual_seed(seed)
    for shape in shapes:
        drawn, expected = ours.randn(shape), torch.randn(shape, generator=theirs).numpy()
        assert (drawn.dtype, drawn.shape) == (expected.dtype, expected.shape)
        assert drawn.tobytes() == expected.tobytes()


def test_noise_is_the_same_on_every_machine():
    drawn = TorchGenerator(42).randn((1, 4, 64, 64))
    assert hashlib.sha256(drawn.tobytes()).hexdigest() == PINNED


@pytest.mark.parametrize("shape", [(0,), (15,), (3, 5)])
def test_draws_that_torch_makes_in_another_way_are_refused(shape):
    with pytest.raises(ValueError, match="16 or more"):
        TorchGenerator(0).randn(shape)


def test_rows_of_a_batch_are_those_of_their_seeds_alone():
    """Two draws each, as for image-to-image, in several threads that share nothing."""
    seeds = [3, 2**40, 3]

    def draw(_):
        return randn(seeds, (1, 4, 8, 8), draws=2)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(draw, range(20)))
    for i, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        for draw_index in range(2):
            expected = torch.randn((1, 4, 8, 8), generator=generator).numpy()[0]
            assert all(batch[draw_index][i].tobytes() == expected.tobytes() for batch in found)


def test_a_sum_that_float64_rounds_to_the_middle_of_two_float32_is_rounded_once():
    """2⁻²⁴·(1+2⁻²⁰)·(1-2⁻²⁰) + (1+2⁻²³) lies 2⁻⁶⁴ below the middle. float64 lands on it, and ties go to the even number."""
    a, b, c = 2.0**-24 * (1 + 2.0**-20), 1 - 2.0**-20, 1 + 2.0**-23
    assert np.float32(a * b + c) == np.float32(1 + 2.0**-22)
    found = _fma(np.array([a, 1.0]), np.array([b, 1.0]), np.float64(c))
    assert found.tolist() == [c, 2.0]  # the second is the middle itself


@pytest.mark.full
def test_ten_thousand_seeds_equal_torch_bit_for_bit():
    for seed in range(10_000):
        expected = torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(seed)).numpy()
        assert randn([seed], (1, 4, 64, 64))[0].tobytes() == expected.tobytes(), seed
