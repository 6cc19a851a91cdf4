"""Text-to-image and image-to-image, read from top to bottom: `Pipeline.__call__` is the hot path.

Knows stages, noise and seeds. Does not know which library runs the stages, nor anything about torch or ONNX.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdturbo import request
from sdturbo.backends import Backend, Program, Session, connect
from sdturbo.bundle import EMBEDDED, TOKENIZER, Bundle
from sdturbo.clock import CancelToken, Clock, Either
from sdturbo.errors import BundleError, InvalidRequest, OutputError
from sdturbo.image import ImageInput, to_pixels
from sdturbo.noise import TorchGenerator
from sdturbo.tokenizer import PromptTokenizer, Tokens

F32 = NDArray[np.float32]
MAX_LATENT = 1e4  # a standard normal stays below 10
NOISES = ("posterior_noise", "noise")  # inputs of the encoder
PROMPT_CACHE = 64  # prompts whose embeddings are kept: 64 × 77 × 1024 × 4 B = 20 MB


@dataclass(frozen=True, slots=True)
class Result:
    """What a call returns.

    images: a list of PIL images; with output_type "np" uint8 (N, H, W, 3); with "latent" float32 (N, 4, H/8, W/8).
    seeds: the seed of each image; empty where `latents` were given. timings: milliseconds a part, and "total".
    dropped: for each prompt, the text beyond 77 tokens that the model did not see ("" if it saw all).
    """

    images: Any
    seeds: list[int]
    timings: dict[str, float]
    dropped: list[str]
    num_inference_steps: int
    strength: float | None
    backend: str
    device: str
    precision: str
    bundle_id: str
    decoder: str


class Pipeline:
    """One bundle on one backend. Immutable after `load`: any number of threads may call it."""

    @classmethod
    def load(
        cls,
        path: str | Path = EMBEDDED,
        backend: str = "auto",
        *,
        device: str | None = None,
        precision: str | None = None,
        num_threads: int | None = None,
        image_to_image: bool = True,
    ) -> Pipeline:
        """Validate the bundle at `path`, choose the backend and compile every stage.

        path: a bundle's directory; by default `tiny`, the toy model that comes with this package.
        backend: "auto", or one of `backends.MODULES`. device: "cpu", "cuda:0", …; None is the backend's first.
        precision: "fp32", "fp16", "bf16", or None for the fastest that the device makes of the bundle's graphs.
        num_threads: CPU threads, None for all. image_to_image: False leaves the encoder out and saves its memory.
        Raises BundleError, BackendUnavailable, InvalidRequest.
        """
        bundle = Bundle.load(path)
        chosen = connect(backend, device=device, precision=precision, num_threads=num_threads, bundle=bundle)
        return cls(bundle, chosen, image_to_image=image_to_image)

    def __init__(self, bundle: Bundle, backend: Backend, *, image_to_image: bool = True) -> None:
        self.bundle = bundle
        self.backend = backend
        try:
            self._tokenizer = PromptTokenizer((bundle.path / TOKENIZER).read_text(encoding="utf-8"))
        except Exception as error:  # the Rust library raises bare Exception
            raise BundleError(bundle.path, [f"{TOKENIZER} is no tokenizer: {error}"]) from error
        self._sessions: dict[tuple[str, int], Session] = {
            (name, size): backend.session(bundle.graph(name, size), stage, size)
            for name, stage in bundle.stages.items()
            for size in bundle.batch_sizes
            if image_to_image or name != "encoder"
        }
        self._programs: dict[tuple[int, int], Program] = {}
        for size in bundle.batch_sizes:
            sessions = {name: session for (name, batch_size), session in self._sessions.items() if batch_size == size}
            for count in self._step_counts:
                program = backend.program(sessions, bundle.steps(count))
                if program is not None:
                    self._programs[count, size] = program
        self._image_to_image = image_to_image
        self._latents_shape = bundle.stages["denoiser"].outputs[0].shape_at(1)
        self._prompt_cache: OrderedDict[bytes, F32] = OrderedDict()
        self._prompt_lock = threading.Lock()

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: ImageInput | None = None,
        *,
        strength: float | None = None,
        num_inference_steps: int = 1,
        num_images_per_prompt: int = 1,
        seed: request.Seeds = 0,
        latents: F32 | None = None,
        output_type: str = "pil",
        cancel: CancelToken | None = None,
    ) -> Result:
        """Draw `num_images_per_prompt` pictures for each prompt, in the prompts' order.

        image: start from this picture (PIL, uint8 (H, W, 3) array, or path), resized to the frame. strength: how much of
        it is drawn anew, 0 to 1; int(num_inference_steps·strength) steps run, as in diffusers. None means 0.5, or 1.0
        with one step. num_inference_steps: 1 to 4. num_images_per_prompt: 1 to 1000.
        seed: image i of the call takes seed + i, or its own from a list with one for each image; 0 to 2⁶⁴−1. The noise
        equals torch.randn((1, 4, H/8, W/8)) on a CPU generator with that seed; image i equals the same seed drawn alone.
        latents: text-to-image noise to use instead, float32 (N, 4, H/8, W/8), standard normal as in diffusers.
        output_type: "pil", "np" (uint8) or "latent". cancel: looked at between stages; on a device that runs the request as
        one, before each batch.
        Raises InvalidRequest, Cancelled, OutputError.
        """
        prompts = request.check_prompts(prompt)
        steps = request.check_count(num_inference_steps, "num_inference_steps", len(self._step_counts))
        per_prompt = request.check_count(num_images_per_prompt, "num_images_per_prompt", request.MAX_IMAGES)
        seeds = request.check_seeds(seed, len(prompts) * per_prompt)
        output_type = request.check_output_type(output_type)
        request.check_cancel(cancel)
        rows = self.bundle.steps(steps)
        if image is not None:
            if latents is not None:
                raise InvalidRequest("Got both image and latents; image-to-image draws its own noise from the seed.")
            if not self._image_to_image:
                raise InvalidRequest("Got an image, but the pipeline was loaded with image_to_image=False.")
            strength = request.check_strength(strength, steps)
            rows = rows[request.first_step(steps, strength) :]
        elif strength is not None:
            raise InvalidRequest(f"Got strength={strength} without an image; strength belongs to image-to-image.")
        clock = Clock(cancel)

        with clock.part("tokenizer"):
            tokens = [self._tokenizer(text) for text in prompts]
        if image is None:
            with clock.part("noise"):
                x = self.prepare_latents(seeds, latents)
        else:
            with clock.part("image"):
                pixels = to_pixels(image, self.bundle.height, self.bundle.width)
            with clock.part("noise"):
                noises = self.prepare_image_noise(seeds)
            with clock.part("encoder"):
                x = self.encode_image(pixels, noises, rows[0])
        images: Any
        if self._programs and image is None and output_type != "latent":
            parts: list[NDArray[np.uint8]] = []
            for size, part in self._parts(len(seeds)):
                with clock.part("engines"):
                    parts.append(self.draw([tokens[i // per_prompt] for i in part], x[part], steps, size))
            images = np.concatenate(parts)[: len(seeds)]
        else:
            with clock.part("text_encoder"):
                embeds = self.encode_prompts(tokens)
            prompt_embeds = [embeds[i // per_prompt] for i in range(len(seeds))]
            for step in rows:
                with clock.part("denoiser"):
                    x = self.denoise(x, prompt_embeds, step)
            images = x
            if output_type != "latent":
                with clock.part("decoder"):
                    images = self.decode(x)
        if output_type == "pil":
            with clock.part("output"):
                images = [
                    self._to_pil(
                        pixels, prompts[i // per_prompt], seeds[i] if latents is None else None, steps, strength
                    )
                    for i, pixels in enumerate(images)
                ]
        return Result(
            images=images,
            seeds=seeds if latents is None else [],
            timings=clock.stop(),
            dropped=[one.dropped for one in tokens],
            num_inference_steps=steps,
            strength=strength,
            backend=self.backend.name,
            device=self.backend.device,
            precision=self.backend.precision,
            bundle_id=self.bundle.bundle_id,
            decoder=self.bundle.decoder,
        )

    async def generate_async(
        self, prompt: str | Sequence[str], image: ImageInput | None = None, **options: Any
    ) -> Result:
        """The same call on a worker thread. Cancelling the task stops the work before its next stage."""
        stop = threading.Event()
        outer: CancelToken | None = options.pop("cancel", None)
        token = Either(stop, outer) if outer is not None else stop
        try:
            return await asyncio.to_thread(self, prompt, image, cancel=token, **options)
        finally:
            stop.set()

    def draw(self, tokens: Sequence[Tokens], latents: F32, steps: int, batch_size: int) -> NDArray[np.uint8]:
        """A batch of pictures uint8 (B, H, W, 3) in one go, where the backend keeps tensors on its device."""
        inputs = {"input_ids": np.concatenate([one.input_ids for one in tokens]), "latents": latents}
        outputs = self._programs[steps, batch_size].run(inputs)
        _require_finite(outputs["latents"], "denoiser")
        self._require_pictures(outputs["image"])
        return outputs["image"]

    def encode_prompts(self, tokens: Sequence[Tokens]) -> list[F32]:
        """prompt_embeds float32 (77, 1024) of each prompt, from the cache or the text encoder."""
        keys = [one.input_ids.tobytes() for one in tokens]
        with self._prompt_lock:
            known = {key: self._prompt_cache[key] for key in keys if key in self._prompt_cache}
        missing = {key: one.input_ids[0] for key, one in zip(keys, tokens, strict=True) if key not in known}
        if missing:
            embeds = self._run("text_encoder", {"input_ids": list(missing.values())})
            _require_finite(embeds, "text encoder")
            known |= dict(zip(missing, embeds, strict=True))
        with self._prompt_lock:
            for key in keys:
                self._prompt_cache[key] = known[key]
                self._prompt_cache.move_to_end(key)
            while len(self._prompt_cache) > PROMPT_CACHE:
                self._prompt_cache.popitem(last=False)
        return [known[key] for key in keys]

    def prepare_latents(self, seeds: Sequence[int], latents: F32 | None = None) -> F32:
        """First latents of text-to-image, noise·sigma_max: float32 (N, 4, H/8, W/8)."""
        if latents is None:
            latents = np.concatenate([TorchGenerator(seed).randn(self._latents_shape) for seed in seeds])
        expected = (len(seeds), *self._latents_shape[1:])
        if not isinstance(latents, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest(f"Got latents of type {type(latents).__name__}; expected a float32 array {expected}.")
        if latents.shape != expected or latents.dtype != np.float32:
            raise InvalidRequest(f"Got latents {latents.dtype} {latents.shape}; expected float32 {expected}.")
        if not (np.abs(latents) <= MAX_LATENT).all():  # refuses NaN too
            raise InvalidRequest(f"Got latents beyond ±{MAX_LATENT:g} or not finite; expected standard normals.")
        return latents * np.float32(self.bundle.schedule[0].sigma)

    def prepare_image_noise(self, seeds: Sequence[int]) -> dict[str, F32]:
        """The encoder's noises by name, drawn in its inputs' order from one generator an image: posterior_noise, noise; an
        AutoencoderTiny has no posterior."""
        generators = [TorchGenerator(seed) for seed in seeds]
        names = [spec.name for spec in self.bundle.stages["encoder"].inputs if spec.name in NOISES]
        return {name: np.concatenate([one.randn(self._latents_shape) for one in generators]) for name in names}

    def encode_image(self, pixels: NDArray[np.uint8], noises: dict[str, F32], step: int) -> F32:
        """Latents of a picture with the noise of row `step` added: float32 (N, 4, H/8, W/8)."""
        inputs = {"image": [pixels[0]] * len(noises["noise"]), **noises}
        return self._run("encoder", inputs, step=np.int64(step))

    def denoise(self, latents: F32, prompt_embeds: Sequence[F32], step: int) -> F32:
        """One step of the schedule: the UNet and the Euler update, row `step` of the table."""
        x = self._run("denoiser", {"latents": latents, "prompt_embeds": prompt_embeds}, step=np.int64(step))
        _require_finite(x, f"denoiser at step {step}")
        return x

    def decode(self, latents: F32) -> NDArray[np.uint8]:
        """Pictures uint8 (N, H, W, 3)."""
        images = self._run("decoder", {"latents": latents})
        self._require_pictures(images)
        return images

    def _require_pictures(self, images: NDArray[np.uint8]) -> None:
        for i, one in enumerate(images):
            if one.min() == one.max():
                raise OutputError(
                    f"The decoder drew image {i} in the single value {one.flat[0]}, which no picture is: its numbers"
                    f" overflowed. Use another precision than {self.backend.precision}, or `sdturbo-export verify`."
                )

    def _run(self, stage: str, batched: dict[str, Any], **scalars: Any) -> NDArray[Any]:
        """Run a stage over N rows, in the parts that `_parts` makes."""
        count = len(next(iter(batched.values())))
        outputs: list[NDArray[Any]] = []
        for size, rows in self._parts(count):
            inputs = {name: np.stack([values[row] for row in rows]) for name, values in batched.items()}
            (output,) = self._sessions[stage, size].run({**inputs, **scalars}).values()
            outputs.append(output)
        return (np.concatenate(outputs) if len(outputs) > 1 else outputs[0])[:count]

    def _parts(self, count: int) -> Iterator[tuple[int, list[int]]]:
        """(batch size, its rows) over N rows in the bundle's batch sizes, the largest first; a last part is filled up."""
        start = 0
        while start < count:
            size = max((b for b in self.bundle.batch_sizes if b <= count - start), default=self.bundle.batch_sizes[0])
            yield size, [min(start + i, count - 1) for i in range(size)]
            start += size

    def _to_pil(
        self, pixels: NDArray[np.uint8], prompt: str, seed: int | None, steps: int, strength: float | None
    ) -> Image.Image:
        """A PIL image whose `info["parameters"]` says how it was made, in AUTOMATIC1111's form."""
        picture = Image.fromarray(pixels)
        denoising = f", Denoising strength: {strength:g}" if strength is not None else ""
        vae = f", VAE: {self.bundle.decoder}" if self.bundle.decoder != "AutoencoderKL" else ""
        seeded = f", Seed: {seed}" if seed is not None else ""
        picture.info["parameters"] = (
            f"{prompt}\nSteps: {steps}, Sampler: Euler, Schedule type: Trailing, CFG scale: 1{seeded},"
            f" Size: {picture.width}x{picture.height}, Model hash: {self.bundle.bundle_id},"
            f" Model: {self.bundle.model['name']}{vae}{denoising}, Version: sdturbo"
        )
        return picture

    @property
    def _step_counts(self) -> list[int]:
        return sorted({row.num_inference_steps for row in self.bundle.schedule})


def _require_finite(values: F32, who: str) -> None:
    if not np.isfinite(values).all():
        raise OutputError(
            f"The {who} produced {np.count_nonzero(~np.isfinite(values))} non-finite values of {values.size}; no picture"
            " was made from them. Use another precision, or `sdturbo-export verify`."
        )
