import asyncio
import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdturbo import Bundle, BundleError, Cancelled, InvalidRequest, OutputError, Pipeline
from sdturbo.backends.null import NullBackend
from sdturbo.bundle.description import identity
from sdturbo.noise import TorchGenerator
from sdturbo.pipeline import PROMPT_CACHE

PICTURE = Image.fromarray(np.arange(40 * 50 * 3, dtype=np.uint32).reshape(40, 50, 3).astype(np.uint8))


class Spy(NullBackend):
    """The null backend; `before` and `after` each run may look at a stage's inputs and change its outputs."""

    def __init__(self, before=lambda stage, inputs: None, after=lambda stage, output: output):
        super().__init__()
        self.calls = []
        self.before, self.after = before, after

    def session(self, graph, stage, batch_size):
        return SpySession(self, stage.name, super().session(graph, stage, batch_size))


class SpySession:
    def __init__(self, spy, stage, inner):
        self.spy, self.stage, self.inner = spy, stage, inner

    def run(self, inputs):
        self.spy.calls.append(self.stage)
        self.spy.before(self.stage, inputs)
        return {name: self.spy.after(self.stage, output) for name, output in self.inner.run(inputs).items()}


class CancelAfter:
    """A token that is set from its n-th look on."""

    def __init__(self, looks):
        self.left = looks

    def is_set(self):
        self.left -= 1
        return self.left < 0


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def spy(bundle_dir):
    return Pipeline(Bundle.load(bundle_dir), Spy())


def test_the_result_says_what_was_made_and_by_whom(pipe):
    result = pipe(["a cat", "cat " * 75 + "dog"], num_inference_steps=2, num_images_per_prompt=2, seed=7)
    assert [image.size for image in result.images] == [(64, 64)] * 4
    assert result.seeds == [7, 8, 9, 10]
    assert result.dropped == ["", "dog"]
    assert (result.num_inference_steps, result.strength) == (2, None)
    assert (result.backend, result.device, result.precision) == ("null", "cpu", "none")
    assert result.bundle_id == pipe.bundle.bundle_id
    parts = ["tokenizer", "noise", "text_encoder", "denoiser", "decoder", "output", "total"]
    assert list(result.timings) == parts
    assert sum(result.timings.values()) - result.timings["total"] <= result.timings["total"]


def test_seed_reproducibility(pipe):
    draws = [pipe("a cat", seed=seed, output_type="np").images.tobytes() for seed in (0, 1, 2**64 - 1, 0)]
    assert draws[0] == draws[3]
    assert len(set(draws)) == 3


def test_prompt_steps_and_strength_change_the_picture(pipe):
    calls = [{}, {"num_inference_steps": 2}, {"image": PICTURE}, {"image": PICTURE, "num_inference_steps": 2}]
    calls += [{"image": PICTURE, "num_inference_steps": 2, "strength": 1.0}, {"image": PICTURE.rotate(90)}]
    draws = [pipe(prompt, output_type="np", **call).images.tobytes() for prompt in ("cat", "dog") for call in calls]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize("batch_sizes", [(1,), (2,), (3,), (1, 2, 4), (2, 4)])
@pytest.mark.parametrize("image", [None, PICTURE])
def test_image_i_of_a_batch_equals_its_seed_alone(make_bundle, pipe, batch_sizes, image):
    batched = Pipeline.load(make_bundle(batch_sizes), "null")
    for count in range(1, 6):
        result = batched("a cat", image, num_images_per_prompt=count, seed=3, output_type="np")
        alone = [pipe("a cat", image, seed=seed, output_type="np").images[0] for seed in result.seeds]
        assert same(result.images, alone)


@settings(max_examples=20)
@given(prompts=st.lists(st.sampled_from("abc"), min_size=1, max_size=4), each=st.integers(1, 3), data=st.data())
def test_pictures_come_in_the_order_of_prompts_and_seeds(pipe, prompts, each, data):
    count = len(prompts) * each
    seeds = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=count, max_size=count))
    result = pipe(prompts, num_images_per_prompt=each, seed=seeds, output_type="np")
    pairs = zip((prompt for prompt in prompts for _ in range(each)), seeds, strict=True)
    assert result.seeds == seeds
    assert same(result.images, [pipe(prompt, seed=seed, output_type="np").images[0] for prompt, seed in pairs])


def test_latents_take_the_place_of_the_seeds_noise(pipe):
    noise = np.concatenate([TorchGenerator(seed).randn((1, 4, 8, 8)) for seed in (5, 6)])
    taken, drawn = (pipe(["a", "b"], output_type="np", **source) for source in ({"latents": noise}, {"seed": 5}))
    assert same(taken.images, drawn.images)


def test_the_first_latents_are_noise_times_sigma_max(bundle_dir):
    seen = []
    spy = Spy(before=lambda stage, inputs: seen.append(inputs["latents"]) if stage == "denoiser" else None)
    Pipeline(Bundle.load(bundle_dir), spy)("a cat", seed=5)
    assert np.array_equal(seen[0], TorchGenerator(5).randn((1, 4, 8, 8)) * np.float32(14.614646911621094))


@pytest.mark.parametrize(
    "latents",
    [
        np.zeros((2, 4, 8, 8), np.float32),
        np.zeros((1, 4, 9, 8), np.float32),
        np.zeros((4, 8, 8), np.float32),
        np.zeros((1, 4, 8, 8)),
        np.zeros((1, 4, 8, 8), np.float16),
        np.full((1, 4, 8, 8), np.nan, np.float32),
        [[0.0]],
        "noise",
    ],
)
def test_other_latents_are_refused(pipe, latents):
    with pytest.raises(InvalidRequest, match="Got latents"):
        pipe("a cat", latents=latents)


@pytest.mark.parametrize(
    ("steps", "strength", "rows"),
    [
        (1, None, [0]),
        (1, 1.0, [0]),
        (2, None, [2]),
        (2, 0.5, [2]),
        (3, 1 / 3, [5]),
        (4, 0.3, [9]),
        (4, 0.75, [7, 8, 9]),
        (4, 1, [6, 7, 8, 9]),
    ],
)
def test_image_to_image_runs_the_last_steps(bundle_dir, steps, strength, rows):
    seen = []
    spy = Spy(before=lambda stage, inputs: seen.append((stage, int(inputs["step"]))) if "step" in inputs else None)
    result = Pipeline(Bundle.load(bundle_dir), spy)("cat", PICTURE, strength=strength, num_inference_steps=steps)
    assert seen == [("encoder", rows[0]), *(("denoiser", row) for row in rows)]
    assert result.strength == (strength or max(0.5, 1 / steps))


def test_image_to_image_draws_posterior_noise_first(bundle_dir):
    seen = {}
    spy = Spy(before=lambda stage, inputs: seen.update(inputs) if stage == "encoder" else None)
    Pipeline(Bundle.load(bundle_dir), spy)("a cat", PICTURE, seed=5)
    generator = TorchGenerator(5)
    assert np.array_equal(seen["posterior_noise"], generator.randn((1, 4, 8, 8)))
    assert np.array_equal(seen["noise"], generator.randn((1, 4, 8, 8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 5}, "expected 1 to 4"),
        ({"num_inference_steps": 0}, "expected 1 to 4"),
        ({"num_images_per_prompt": 0}, "1 to 1000"),
        ({"seed": -1}, "seed"),
        ({"strength": 0.5}, "without an image"),
        ({"image": PICTURE, "strength": 0.4, "num_inference_steps": 2}, "no step would run"),
        ({"image": PICTURE, "latents": np.zeros((1, 4, 8, 8), np.float32)}, "both image and latents"),
        ({"image": 7}, "expected a PIL image"),
        ({"output_type": "jpeg"}, "output_type"),
        ({"prompt": None}, "expected text"),
        ({"prompt": "\ud800"}, "not valid Unicode"),
    ],
)
def test_bad_requests_are_refused(pipe, options, message):
    with pytest.raises(InvalidRequest, match=message):
        pipe(**{"prompt": "a cat", **options})


def test_without_image_to_image_the_encoder_is_left_out(bundle_dir):
    pipe = Pipeline.load(bundle_dir, "null", image_to_image=False)
    assert pipe("a cat").images
    with pytest.raises(InvalidRequest, match="image_to_image=False"):
        pipe("a cat", PICTURE)


# the image is opened and looked at for a mask, and later resized
PARTS = ["image", "tokenizer", "image", "noise", "encoder", "text_encoder", "denoiser", "denoiser", "decoder", "output"]


@pytest.mark.parametrize("before", range(len(PARTS)))
def test_cancellation_is_honoured_before_each_part(spy, before):
    with pytest.raises(Cancelled, match=rf"before {PARTS[before]}\."):
        spy("a cat", PICTURE, num_inference_steps=2, strength=1.0, cancel=CancelAfter(before))
    assert spy.backend.calls == [part for part in PARTS[:before] if part in spy.bundle.stages]


def test_a_token_that_is_never_set_changes_nothing(pipe):
    assert pipe("a cat", cancel=threading.Event()).images == pipe("a cat").images


def test_async_draws_the_same(pipe):
    async def draw():
        calls = (pipe.generate_async("a cat", seed=seed, cancel=threading.Event()) for seed in range(5))
        return await asyncio.gather(*calls, pipe.generate_async("a cat", PICTURE, seed=5))

    expected = [pipe("a cat", seed=seed).images for seed in range(5)] + [pipe("a cat", PICTURE, seed=5).images]
    assert [result.images for result in asyncio.run(draw())] == expected


def test_async_honours_the_callers_token(spy):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        asyncio.run(spy.generate_async("a cat", cancel=stop))
    assert spy.backend.calls == []


def test_a_cancelled_task_stops_before_the_next_stage(bundle_dir):
    entered, release = threading.Event(), threading.Event()

    def hold(stage, inputs):
        if stage == "denoiser":
            entered.set()
            release.wait(10)

    pipe = Pipeline(Bundle.load(bundle_dir), Spy(before=hold))

    async def cancel():
        task = asyncio.create_task(pipe.generate_async("a cat", num_inference_steps=2))
        await asyncio.to_thread(entered.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()

    asyncio.run(cancel())  # waits for its threads
    assert pipe.backend.calls == ["text_encoder", "denoiser"]


def test_eight_threads_draw_what_one_thread_draws(pipe):
    def draw(i):
        image = PICTURE if i % 3 == 0 else None
        return pipe(f"cat {i % 70}", image, seed=i, num_inference_steps=2 + i % 3, output_type="np").images.tobytes()

    alone = [draw(i) for i in range(100)]
    with ThreadPoolExecutor(8) as pool:
        for drawn in pool.map(lambda start: [draw((start * 13 + i) % 100) for i in range(100)], range(8)):
            assert sorted(drawn) == sorted(alone)
        assert list(pool.map(draw, range(100))) == alone


def test_a_known_prompt_is_not_encoded_again(spy):
    first = spy(["a cat", "a dog", "a cat"], output_type="np")
    assert spy.backend.calls.count("text_encoder") == 2
    second = spy(["a cat", "a dog", "a cat"], output_type="np")
    assert spy.backend.calls.count("text_encoder") == 2
    assert same(first.images, second.images)


def test_the_prompt_cache_forgets_the_least_recently_used(spy):
    def encoded(prompt):
        spy.backend.calls.clear()
        spy(prompt, output_type="latent")
        return "text_encoder" in spy.backend.calls

    assert all(encoded(f"cat {i}") for i in range(PROMPT_CACHE))
    assert not encoded("cat 0")
    assert encoded("one more")
    assert not encoded("cat 0")
    assert encoded("cat 1")


def test_more_prompts_than_the_cache_holds_are_drawn(spy):
    prompts = [f"cat {i}" for i in range(PROMPT_CACHE + 3)]
    result = spy(prompts, seed=[0] * len(prompts), output_type="latent")
    assert same(result.images[[0, -1]], [spy(prompts[i], output_type="latent").images[0] for i in (0, -1)])


@pytest.mark.parametrize(
    ("stage", "value", "message"),
    [
        ("text_encoder", np.nan, "text encoder produced 616 non-finite values of 616"),
        ("denoiser", np.nan, "denoiser at step 1 produced 256 non-finite"),
        ("denoiser", np.inf, "denoiser at step 1 produced 256 non-finite"),
        ("decoder", 0, "image 0 in the single value 0"),
        ("decoder", 255, "image 0 in the single value 255"),
    ],
)
def test_output_that_is_no_picture_is_an_error(bundle_dir, stage, value, message):
    spoil = Spy(after=lambda name, output: np.full_like(output, value) if name == stage else output)
    with pytest.raises(OutputError, match=message):
        Pipeline(Bundle.load(bundle_dir), spoil)("a cat", num_inference_steps=2)


def test_a_single_non_finite_value_is_an_error(bundle_dir):
    def spoil(stage, output):
        if stage == "denoiser":
            output[0, 3, 7, 7] = -np.inf
        return output

    with pytest.raises(OutputError, match="1 non-finite values of 256"):
        Pipeline(Bundle.load(bundle_dir), Spy(after=spoil))("a cat")


def test_output_types_hold_the_same_pictures(spy):
    pil, pixels, latents = (spy(["a", "b"], output_type=kind).images for kind in ("pil", "np", "latent"))
    assert same(pil, pixels)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (2, 64, 64, 3))
    assert (latents.dtype, latents.shape) == (np.float32, (2, 4, 8, 8))
    assert spy.backend.calls.count("decoder") == 4
    assert np.array_equal(spy._run(spy.bundle.sizes[0], "decoder", {"latents": latents}), pixels)


def test_pictures_say_how_they_were_made(pipe):
    drawn = pipe(["a cat", "ein Bär\n2nd"], num_inference_steps=3, seed=[9, 2**64 - 1]).images
    assert [image.info["parameters"] for image in drawn] == [
        f"{prompt}\nSteps: 3, Sampler: Euler, Schedule type: Trailing, CFG scale: 1, Seed: {seed}, Size: 64x64,"
        f" Model hash: {pipe.bundle.bundle_id}, Model: fake, Version: sdturbo"
        for prompt, seed in (("a cat", 9), ("ein Bär\n2nd", 2**64 - 1))
    ]
    (changed,) = pipe("a cat", PICTURE, strength=0.5, num_inference_steps=4).images
    assert ", Denoising strength: 0.5," in changed.info["parameters"]


def test_pictures_of_given_latents_claim_no_seed(pipe):
    result = pipe("a cat", latents=np.zeros((1, 4, 8, 8), np.float32))
    assert result.seeds == []
    assert "Seed" not in result.images[0].info["parameters"]


def test_a_cancel_that_cannot_be_asked_is_refused(pipe):
    with pytest.raises(InvalidRequest, match="is_set"):
        pipe("a cat", cancel=True)


def test_a_broken_tokenizer_is_a_fault_of_the_bundle(make_bundle):
    root = make_bundle()
    manifest = json.loads((root / "bundle.json").read_text())
    (root / "tokenizer.json").write_bytes(b"{}")
    manifest["files"]["tokenizer.json"] = {"sha256": hashlib.sha256(b"{}").hexdigest(), "size": 2}
    (root / "bundle.json").write_text(json.dumps(manifest | {"bundle_id": identity(manifest)}))
    with pytest.raises(BundleError, match=r"tokenizer\.json is no tokenizer"):
        Pipeline.load(root, "null")


@pytest.mark.parametrize("path", [None, 3])
def test_a_bundle_path_of_another_type_is_refused(path):
    with pytest.raises(InvalidRequest, match="bundle path"):
        Pipeline.load(path, "null")
