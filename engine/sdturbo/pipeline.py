"""Text-to-image and image-to-image, read from top to bottom: `Pipeline.__call__` is the hot path.

Knows stages, noise and seeds. Does not know which library runs the stages, nor anything about torch or ONNX.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdturbo.backends import Backend, EngineChoice, Program, Session, load_first
from sdturbo.bundle import EMBEDDED, Bundle
from sdturbo.bundle.description import TOKENIZER
from sdturbo.clock import CancelToken, Either
from sdturbo.errors import BundleError, InvalidRequest, OutputError, SDTurboError
from sdturbo.image import ImageInput, to_pixels
from sdturbo.noise import TorchGenerator
from sdturbo.pipelined import stream
from sdturbo.request import (
    DEFAULT_IMAGES,
    DEFAULT_OUTPUT_TYPE,
    DEFAULT_SEED,
    DEFAULT_STEPS,
    F32,
    Job,
    Request,
    Seeds,
    accept,
)
from sdturbo.result import Result, finish
from sdturbo.tokenizer import PromptTokenizer, Tokens

MAX_LATENT = 1e4  # a standard normal stays below 10
NOISES = ("posterior_noise", "noise")  # inputs of the encoder
PROMPT_CACHE = 64  # prompts whose embeddings are kept: 64 × 77 × 1024 × 4 B = 20 MB


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
        trust_unchanged: bool = True,
    ) -> Pipeline:
        """Validate the bundle at `path`, choose the backend and compile every stage.

        path: a bundle's directory; by default `tiny`, the toy model that comes with this package.
        backend: a name of `backends.names()`, or "auto" for the first that runs the bundle. device: one that it offers, such as
        "cpu" or "cuda:0"; None is its first that runs. precision: one of `backends.PRECISIONS`, or None for the fastest that
        the device makes of the bundle's graphs.
        num_threads: CPU threads, None for all. image_to_image: False leaves the encoder out and saves its memory.
        trust_unchanged: large files of the bundle, and what was compiled of it, are not hashed again if they did not change
        since they were, within a week; False hashes everything.
        Raises BundleError, BackendUnavailable, InvalidRequest.
        """
        choice = EngineChoice(backend, device, precision, num_threads)
        bundle = Bundle.load(path, trust_unchanged=trust_unchanged)
        return load_first(choice, bundle, lambda chosen: cls(bundle, chosen, image_to_image=image_to_image))

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
            for size in sorted(bundle.batch_sizes, reverse=True)  # the smaller ones then fit into memory they may share
            if image_to_image or name != "encoder"
        }
        self._programs: dict[tuple[int, int], Program] = {}
        for size in bundle.batch_sizes:
            sessions = {name: session for (name, batch_size), session in self._sessions.items() if batch_size == size}
            for count in bundle.step_counts:
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
        num_inference_steps: int = DEFAULT_STEPS,
        num_images_per_prompt: int = DEFAULT_IMAGES,
        seed: Seeds = DEFAULT_SEED,
        latents: F32 | None = None,
        output_type: str = DEFAULT_OUTPUT_TYPE,
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
        job = self._accept(
            {
                "prompt": prompt,
                "image": image,
                "strength": strength,
                "num_inference_steps": num_inference_steps,
                "num_images_per_prompt": num_images_per_prompt,
                "seed": seed,
                "latents": latents,
                "output_type": output_type,
                "cancel": cancel,
            }
        )
        self._prepare(job)
        if self._programs and job.image is None and job.ends_in_pictures:
            self._run_joined(job)
        else:
            self._run_text(job)
            self._run_denoiser(job)
            self._run_decoder(job)
        return finish(job, self.bundle, self.backend)

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

    def stream(self, requests: Iterable[Request]) -> Generator[Result | SDTurboError]:
        """Each request's result, in the requests' order, while the next ones are under way: text n+1 ‖ denoise n ‖ decode n-1.

        For pictures a second; a single one is drawn sooner by a call. Gains where stages can run at the same time, as on a
        GPU with room for them; on a CPU they share its cores. requests: each a call's arguments by name; asked for the next
        one in the caller's thread, never more than `pipelined.IN_FLIGHT` ahead of the result that was taken last.
        A request that fails yields its error in its place, an SDTurboError, and the others go on; one that is cancelled yields
        Cancelled. Any other exception, and those of `requests`, are raised and end the stream. Closing the generator stops
        what is under way before its next stage; the three threads have ended when it returns.
        timings: "total" contains the time a request waited between stages.
        """
        return stream(requests, self._stream_text, self._stream_denoise, self._stream_decode)

    def _accept(self, request: Request) -> Job:
        job = accept(self.bundle, request)
        if job.image is not None and not self._image_to_image:
            raise InvalidRequest("Got an image, but the pipeline was loaded with image_to_image=False.")
        return job

    def _stream_text(self, request: Request, stop: CancelToken) -> Job:
        job = self._accept(request)
        job.clock.also_stopped_by(stop)
        self._prepare(job)
        self._run_text(job)
        return job

    def _stream_denoise(self, job: Job) -> Job:
        self._run_denoiser(job)
        return job

    def _stream_decode(self, job: Job) -> Result:
        self._run_decoder(job)
        return finish(job, self.bundle, self.backend)

    def _prepare(self, job: Job) -> None:
        """Tokens and the first latents."""
        with job.clock.part("tokenizer"):
            job.tokens = [self._tokenizer(text) for text in job.prompts]
        if job.image is None:
            with job.clock.part("noise"):
                job.x = self._prepare_latents(job.seeds, job.latents)
            return
        with job.clock.part("image"):
            pixels = to_pixels(job.image, self.bundle.height, self.bundle.width)
        with job.clock.part("noise"):
            noises = self._prepare_image_noise(job.seeds)
        with job.clock.part("encoder"):
            job.x = self._encode_image(pixels, noises, job.rows[0])

    def _run_joined(self, job: Job) -> None:
        """All stages in one go, a batch at a time."""
        count = len(job.seeds)
        parts: list[NDArray[np.uint8]] = []
        for size, part in self._parts(count):
            with job.clock.part("engines"):
                tokens = [job.tokens[i // job.images_per_prompt] for i in part]
                parts.append(self._draw(tokens, job.x[part], job.num_inference_steps, size))
        job.images = np.concatenate(parts)[:count]

    def _run_text(self, job: Job) -> None:
        with job.clock.part("text_encoder"):
            embeds = self._encode_prompts(job.tokens)
        job.prompt_embeds = [embeds[i // job.images_per_prompt] for i in range(len(job.seeds))]

    def _run_denoiser(self, job: Job) -> None:
        for step in job.rows:
            with job.clock.part("denoiser"):
                job.x = self._denoise(job.x, job.prompt_embeds, step)

    def _run_decoder(self, job: Job) -> None:
        if job.ends_in_pictures:
            with job.clock.part("decoder"):
                job.images = self._decode(job.x)

    def _draw(self, tokens: Sequence[Tokens], latents: F32, steps: int, batch_size: int) -> NDArray[np.uint8]:
        """A batch of pictures uint8 (B, H, W, 3) in one go, where the backend keeps tensors on its device."""
        inputs = {"input_ids": np.concatenate([one.input_ids for one in tokens]), "latents": latents}
        outputs = self._programs[steps, batch_size].run(inputs)
        _require_finite(outputs["latents"], "denoiser")
        self._require_pictures(outputs["image"])
        return outputs["image"]

    def _encode_prompts(self, tokens: Sequence[Tokens]) -> list[F32]:
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

    def _prepare_latents(self, seeds: Sequence[int], latents: F32 | None = None) -> F32:
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

    def _prepare_image_noise(self, seeds: Sequence[int]) -> dict[str, F32]:
        """The encoder's noises by name, drawn in its inputs' order from one generator an image: posterior_noise, noise; an
        AutoencoderTiny has no posterior."""
        generators = [TorchGenerator(seed) for seed in seeds]
        names = [spec.name for spec in self.bundle.stages["encoder"].inputs if spec.name in NOISES]
        return {name: np.concatenate([one.randn(self._latents_shape) for one in generators]) for name in names}

    def _encode_image(self, pixels: NDArray[np.uint8], noises: dict[str, F32], step: int) -> F32:
        """Latents of a picture with the noise of row `step` added: float32 (N, 4, H/8, W/8)."""
        inputs = {"image": [pixels[0]] * len(noises["noise"]), **noises}
        return self._run("encoder", inputs, step=np.int64(step))

    def _denoise(self, latents: F32, prompt_embeds: Sequence[F32], step: int) -> F32:
        """One step of the schedule: the UNet and the Euler update, row `step` of the table."""
        x = self._run("denoiser", {"latents": latents, "prompt_embeds": prompt_embeds}, step=np.int64(step))
        _require_finite(x, f"denoiser at step {step}")
        return x

    def _decode(self, latents: F32) -> NDArray[np.uint8]:
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


def _require_finite(values: F32, who: str) -> None:
    if not np.isfinite(values).all():
        raise OutputError(
            f"The {who} produced {np.count_nonzero(~np.isfinite(values))} non-finite values of {values.size}; no picture"
            " was made from them. Use another precision, or `sdturbo-export verify`."
        )
