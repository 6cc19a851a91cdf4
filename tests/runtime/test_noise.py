import hashlib

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from sdturbo.noise import TorchGenerator

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
