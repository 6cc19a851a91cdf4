"""Pictures of cameras and of feedback: frames that need no drawing, and a start picture from the last result."""

import math

import numpy as np
import pytest
from PIL import Image

from sdturbo import InvalidRequest
from sdturbo.image import SimilarFrames, feedback

RNG = np.random.default_rng(0)
FRAME = RNG.integers(20, 230, (48, 64, 3), np.uint8)


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self):
        return self.now


def test_the_first_frame_and_changed_ones_are_drawn():
    frames = SimilarFrames(threshold=2, longest_pause=math.inf)
    assert frames.is_to_be_drawn(FRAME)
    assert not frames.is_to_be_drawn(FRAME)
    assert not frames.is_to_be_drawn(FRAME + np.uint8(1))
    assert not frames.is_to_be_drawn(FRAME - np.uint8(1))
    assert frames.is_to_be_drawn(FRAME + np.uint8(2))
    assert not frames.is_to_be_drawn(FRAME + np.uint8(3))
    assert frames.is_to_be_drawn(FRAME)


def test_black_and_white_differ_most():
    frames = SimilarFrames(threshold=255, longest_pause=math.inf)
    black = np.zeros((8, 8, 3), np.uint8)
    assert [frames.is_to_be_drawn(frame) for frame in (black, black + np.uint8(254), ~black)] == [True, False, True]


def test_slow_changes_add_up():
    frames = SimilarFrames(threshold=3, longest_pause=math.inf)
    drawn = [frames.is_to_be_drawn(FRAME + np.uint8(step)) for step in range(7)]
    assert drawn == [True, False, False, True, False, False, True]


def test_a_pause_ends_after_the_longest():
    clock = Clock()
    frames = SimilarFrames(threshold=2, longest_pause=5, clock=clock)
    assert frames.is_to_be_drawn(FRAME)
    for now, drawn in ((104.9, False), (105, True), (109.9, False), (110.1, True)):
        clock.now = now
        assert frames.is_to_be_drawn(FRAME) == drawn


def test_a_threshold_or_a_pause_of_zero_draws_everything():
    for frames in (SimilarFrames(threshold=0, longest_pause=math.inf), SimilarFrames(longest_pause=0)):
        assert [frames.is_to_be_drawn(FRAME) for _ in range(3)] == [True] * 3


def test_frames_of_another_size_and_forgotten_ones_are_drawn():
    frames = SimilarFrames(longest_pause=math.inf)
    assert frames.is_to_be_drawn(FRAME)
    assert frames.is_to_be_drawn(FRAME[:40])
    assert not frames.is_to_be_drawn(Image.fromarray(FRAME[:40]))
    frames.forget()
    assert frames.is_to_be_drawn(FRAME[:40])


def test_a_camera_may_reuse_its_buffer():
    frames, buffer = SimilarFrames(longest_pause=math.inf), FRAME.copy()
    assert frames.is_to_be_drawn(buffer)
    buffer[:] = 255 - buffer
    assert frames.is_to_be_drawn(buffer)


@pytest.mark.parametrize(
    "options", [{"threshold": -1}, {"threshold": 256}, {"threshold": math.nan}, {"threshold": "2"}]
)
@pytest.mark.parametrize("more", [{}, {"longest_pause": 1}])
def test_other_thresholds_are_refused(options, more):
    with pytest.raises(InvalidRequest, match=r"threshold=.*0 to 255"):
        SimilarFrames(**options, **more)


def test_other_pauses_and_frames_are_refused():
    for pause in (-1, math.nan, None):
        with pytest.raises(InvalidRequest, match="expected seconds"):
            SimilarFrames(longest_pause=pause)
    with pytest.raises(InvalidRequest, match="Got an image"):
        SimilarFrames().is_to_be_drawn(FRAME.astype(np.float32))


def test_feedback_without_zoom_and_shift_is_the_picture():
    for image in (FRAME, Image.fromarray(FRAME)):
        assert np.array_equal(feedback(image), FRAME)


@pytest.mark.parametrize(("right", "down"), [(5, 0), (-5, 0), (0, 7), (3, -4), (64, 48), (-64, 0)])
def test_a_shift_moves_the_picture_and_mirrors_it_at_the_edges(right, down):
    padded = np.pad(FRAME, ((48, 48), (64, 64), (0, 0)), mode="symmetric")
    expected = padded[48 - down : 96 - down, 64 - right : 128 - right]
    assert np.array_equal(feedback(FRAME, shift=(right, down)), expected)


def test_a_zoom_comes_closer_to_the_middle():
    blocks = np.kron(RNG.integers(0, 256, (3, 4, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
    closer = feedback(blocks, zoom=2)
    assert closer.shape == blocks.shape
    assert np.array_equal(closer[[24, 24], [16, 48]], blocks[[24, 24], [24, 40]])  # 32 + (16 - 32)/2, 32 + (48 - 32)/2
    away = feedback(blocks, zoom=0.5)
    assert np.array_equal(away[[16, 16], [20, 12]], blocks[[8, 8], [8, 8]])  # the second is the mirror image


def test_the_zoom_stays_when_the_picture_is_shifted_afterwards():
    assert np.array_equal(feedback(FRAME, zoom=2, shift=(6, 0))[:, 6:], feedback(FRAME, zoom=2)[:, :-6])


def test_the_next_picture_starts_from_the_last(pipe):
    last = pipe("a cat", output_type="np").images[0]
    following = pipe("a cat", feedback(last, zoom=1.1, shift=(2, 0)), num_inference_steps=2, output_type="np")
    assert following.images.shape == (1, *last.shape)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"zoom": 0}, r"zoom=0, expected 0\.25 to 4"),
        ({"zoom": 5}, "zoom=5"),
        ({"zoom": math.nan}, "zoom=nan"),
        ({"zoom": "2"}, "zoom='2'"),
        ({"shift": (65, 0)}, "shift by 65 pixels, expected at most 64"),
        ({"shift": (0, -49)}, "shift by -49 pixels, expected at most 48"),
        ({"shift": 3}, r"expected \(right, down\)"),
        ({"shift": (1,)}, r"expected \(right, down\)"),
        ({"shift": (1, None)}, "shift by None pixels"),
    ],
)
def test_other_zooms_and_shifts_are_refused(options, words):
    with pytest.raises(InvalidRequest, match=words):
        feedback(FRAME, **options)
