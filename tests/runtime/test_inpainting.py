"""Inpainting: the mask as diffusers reads it, and a start picture that stays as it was outside."""

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from sdturbo import Bundle, InvalidRequest, OutputError, Pipeline
from sdturbo.backends.null import DEVICES, NullBackend
from sdturbo.image.mask import SOFT_EDGE, of_alpha, put_back, to_mask
from sdturbo.noise import randn

SIZE = 64  # of the bundle's pictures
PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 40, 3), np.uint8))
MASK = np.zeros((SIZE, SIZE), np.bool_)
MASK[:16, :24] = True


def processed(mask):
    """The mask as diffusers' inpainting pipeline reads it."""
    processor = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    return processor.preprocess(mask, SIZE, SIZE)[0, 0].numpy() == 1


@given(width=st.integers(1, 150), height=st.integers(1, 150), mode=st.sampled_from(["L", "1", "RGB"]))
def test_a_mask_is_read_as_diffusers_does(width, height, mode):
    rng = np.random.default_rng(width * 1000 + height)
    mask = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
    expected = processed(mask)
    if expected.any():
        assert np.array_equal(to_mask(mask, SIZE, SIZE), expected)


@pytest.mark.parametrize("size", [SIZE, 40, 100])
def test_arrays_are_masks_too(size):
    levels = np.random.default_rng(size).integers(0, 256, (size, size + 3), np.uint8)
    assert np.array_equal(to_mask(levels, SIZE, SIZE), to_mask(Image.fromarray(levels), SIZE, SIZE))
    marked = levels > 127
    nearest = Image.fromarray(marked).resize((SIZE, SIZE), Image.Resampling.NEAREST)
    assert np.array_equal(to_mask(marked, SIZE, SIZE), np.asarray(nearest))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_drawn_anew(mode):
    cutout = Image.new("RGBA", (SIZE, SIZE), "white")
    cutout.putalpha(Image.fromarray(np.where(MASK, 0, 255).astype(np.uint8)))
    assert np.array_equal(to_mask(cutout.convert(mode), SIZE, SIZE), MASK)


def test_an_opaque_mask_counts_by_its_colours():
    mask = Image.fromarray(MASK).convert("RGBA")
    assert np.array_equal(to_mask(mask, SIZE, SIZE), MASK)


def test_a_rotated_mask_is_turned_as_the_image_is():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    turned = Image.fromarray(MASK).convert("L")
    turned.info["exif"] = exif.tobytes()
    assert np.array_equal(to_mask(turned, SIZE, SIZE), np.rot90(MASK, -1))
    cutout = Image.new("RGBA", (SIZE, SIZE), "white")
    cutout.putalpha(Image.fromarray(np.where(MASK, 0, 255).astype(np.uint8)))
    cutout.info["exif"] = exif.tobytes()
    assert np.array_equal(of_alpha(cutout, SIZE, SIZE), np.rot90(MASK, -1))


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (np.zeros((8, 8), np.bool_), "without white"),
        (np.ones((8, 8), np.uint8), "without white"),  # values of 0 and 1 where 0-255 are expected
        (Image.new("RGB", (9, 9)), "without white"),
        (np.ones((8, 8), np.float32), "float32 and shape"),
        (np.ones((2, 8, 8), np.bool_), "bool and shape"),
        (np.ones((0, 8), np.bool_), "shape"),
        (7, "type int"),
        ("nowhere.png", "nowhere.png"),
    ],
)
def test_what_is_no_mask_is_refused_in_words(pipe, mask, match):
    with pytest.raises(InvalidRequest, match=match):
        pipe("a cat", PICTURE, mask_image=mask)


def test_a_mask_needs_an_image_and_an_area(pipe):
    with pytest.raises(InvalidRequest, match="mask_image without an image"):
        pipe("a cat", mask_image=MASK)
    dot = np.zeros((SIZE, SIZE), np.bool_)
    dot[3:7, 3:7] = True
    with pytest.raises(InvalidRequest, match="16 pixels, which is too small"):
        pipe("a cat", PICTURE, mask_image=dot)
    for start in ({}, {"image": PICTURE, "mask_image": MASK}):
        with pytest.raises(InvalidRequest, match="keep_unmasked='no'"):
            pipe("a cat", **start, keep_unmasked="no")
    pipe("a cat", PICTURE, mask_image=MASK, keep_unmasked=np.False_)


def test_strength_is_1_by_default_as_in_diffusers(pipe):
    assert pipe("a cat", PICTURE, mask_image=MASK, num_inference_steps=4).strength == 1.0
    assert pipe("a cat", PICTURE, num_inference_steps=4).strength == 0.5


@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (2, 0.5), (4, 0.75)])
def test_latents_outside_the_mask_end_as_those_of_the_start_picture(pipe, steps, strength):
    options = {"num_inference_steps": steps, "strength": strength, "output_type": "latent", "seed": 3}
    white = np.ones_like(MASK)
    kept = pipe("a cat", PICTURE, mask_image=MASK, **options).images
    others = pipe("a dog", PICTURE, mask_image=MASK, **options).images
    anew = MASK[::8, ::8]
    assert np.array_equal(kept[..., ~anew], others[..., ~anew])
    assert not np.array_equal(kept[..., anew], others[..., anew])
    whole = pipe("a cat", PICTURE, mask_image=white, **options).images
    assert not np.array_equal(whole[..., ~anew], kept[..., ~anew])


def test_the_kept_part_is_led_along_under_the_same_noise(bundle_dir, monkeypatch):
    """The denoiser sees, outside the mask, the start picture's latents + sigma·noise at every step."""
    bundle, seen = Bundle.load(bundle_dir), []
    pipe = Pipeline(bundle, NullBackend())
    run = Pipeline._run

    def spy(self, size, stage, batched, **scalars):
        output = run(self, size, stage, batched, **scalars)
        seen.append((stage, batched, int(scalars.get("step", -1)), output))
        return output

    monkeypatch.setattr(Pipeline, "_run", spy)
    pipe("a cat", PICTURE, mask_image=MASK, num_inference_steps=4, strength=0.75, seed=9)
    start = next(output for stage, _, _, output in seen if stage == "encoder")
    noise = randn([9], start.shape, draws=2)[1]
    steps = [(batched["latents"], row) for stage, batched, row, _ in seen if stage == "denoiser"]
    assert len(steps) == 3
    for x, row in steps:
        expected = start + np.float32(bundle.schedule[row].sigma) * noise
        assert np.allclose(x[..., ~MASK[::8, ::8]], expected[..., ~MASK[::8, ::8]], atol=1e-5)


def test_pixels_outside_the_mask_do_not_change(pipe):
    start = np.asarray(PICTURE.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    for seed in range(3):
        options = {"seed": seed, "output_type": "np", "num_inference_steps": 2}
        picture = pipe("a cat", PICTURE, mask_image=MASK, **options).images[0]
        free = pipe("a cat", PICTURE, mask_image=MASK, keep_unmasked=False, **options).images[0]
        beyond = np.ones_like(MASK)
        beyond[: 16 + SOFT_EDGE, : 24 + SOFT_EDGE] = False
        assert np.array_equal(picture[beyond], start[beyond])
        assert np.array_equal(picture[MASK], free[MASK])
        assert not np.array_equal(free[beyond], start[beyond])


def test_the_edge_fades_from_the_mask_outwards():
    mask = np.zeros((96, 96), np.bool_)
    mask[40:56, 40:56] = True
    black, white = np.zeros((96, 96, 3), np.uint8), np.full((1, 96, 96, 3), 255, np.uint8)
    row = put_back(white, black, mask)[0, 48, :, 0].astype(int)
    assert (row[40:56] == 255).all()
    assert (np.diff(row[:48]) >= 0).all()
    assert (row[24:40] % 255 > 0).sum() >= 8  # soft, not a step
    assert (row[: 40 - SOFT_EDGE] == 0).all()
    assert np.array_equal(row, row[::-1])


def test_a_transparent_border_is_drawn_anew(pipe, tmp_path):
    border = Image.fromarray(np.where(MASK, 0, 255).astype(np.uint8))
    picture = PICTURE.resize((SIZE, SIZE))
    expected = pipe("a cat", picture, mask_image=MASK, output_type="np")
    picture.putalpha(border)
    picture.save(tmp_path / "border.png")
    for image in (picture, tmp_path / "border.png"):
        result = pipe("a cat", image, output_type="np")
        assert np.array_equal(result.images, expected.images)
        assert result.strength == 1.0
    picture.putalpha(255)  # opaque: plain image-to-image
    assert pipe("a cat", picture, num_inference_steps=2).strength == 0.5


@pytest.mark.parametrize("alpha", [250, 129, "a speck"])
def test_a_picture_that_is_opaque_on_the_whole_is_plain_image_to_image(pipe, alpha):
    faint = np.full((SIZE, SIZE), 250, np.uint8)
    if alpha == "a speck":
        faint[3:5, 3:5] = 0
    else:
        faint[:] = alpha
    picture = PICTURE.resize((SIZE, SIZE))
    plain = pipe("a cat", picture, num_inference_steps=2, output_type="np").images
    picture.putalpha(Image.fromarray(faint))
    result = pipe("a cat", picture, num_inference_steps=2, output_type="np")
    assert np.array_equal(result.images, plain)
    assert result.strength == 0.5


def test_a_mask_with_faint_alpha_counts_by_its_colours():
    mask = Image.fromarray(MASK).convert("RGBA")
    mask.putalpha(254)
    assert np.array_equal(to_mask(mask, SIZE, SIZE), MASK)


def test_masks_of_16_bits_are_cut_at_one_half_of_their_range():
    levels = np.where(MASK, 40_000, 300).astype(np.uint16)
    assert np.array_equal(to_mask(Image.fromarray(levels), SIZE, SIZE), MASK)
    for wide in (np.int32, np.float32):
        with pytest.raises(InvalidRequest, match="whose white is not defined"):
            to_mask(Image.fromarray(MASK.astype(wide)), SIZE, SIZE)


def test_an_array_of_four_channels_is_a_mask_by_its_alpha():
    cutout = np.zeros((SIZE, SIZE, 4), np.uint8)
    cutout[..., 3] = np.where(MASK, 0, 255)
    assert np.array_equal(to_mask(cutout, SIZE, SIZE), MASK)


def test_latents_of_a_start_picture_that_are_no_numbers_are_an_error(bundle_dir, monkeypatch):
    pipe = Pipeline(Bundle.load(bundle_dir), NullBackend())
    session = pipe._sessions["encoder", 1, (SIZE, SIZE)]
    run = session.run
    monkeypatch.setattr(session, "run", lambda inputs: {name: x * np.nan for name, x in run(inputs).items()})
    with pytest.raises(OutputError, match="encoder produced"):
        pipe("a cat", PICTURE, mask_image=MASK, output_type="latent")


@pytest.mark.parametrize("device", DEVICES[:2])
def test_batches_devices_and_streams_inpaint_alike(bundle_dir, device):
    request = {"prompt": ["a cat", "a dog"], "image": PICTURE, "mask_image": MASK, "num_inference_steps": 2, "seed": 5}
    pipe = Pipeline(Bundle.load(bundle_dir), NullBackend(device))
    together = pipe(**request, num_images_per_prompt=2, output_type="np").images
    host = Pipeline(Bundle.load(bundle_dir), NullBackend())
    for i, prompt in enumerate(["a cat", "a cat", "a dog", "a dog"]):
        alone = host(prompt, PICTURE, mask_image=MASK, num_inference_steps=2, seed=5 + i, output_type="np").images[0]
        assert np.array_equal(together[i], alone)
    (streamed,) = pipe.stream([{**request, "num_images_per_prompt": 2, "output_type": "np"}])
    assert np.array_equal(streamed.images, together)


def test_a_blurred_mask_is_cut_at_one_half(pipe):
    soft = Image.fromarray(MASK).convert("L").filter(ImageFilter.BoxBlur(3))
    hard = np.asarray(soft) >= 128
    assert np.array_equal(
        pipe("a cat", PICTURE, mask_image=soft, output_type="np").images,
        pipe("a cat", PICTURE, mask_image=hard, output_type="np").images,
    )
