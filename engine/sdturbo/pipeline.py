"""Text-to-image, image-to-image and inpainting, read from top to bottom. `Pipeline.__call__` is the hot path.

Knows stages, noise and seeds. Knows neither the library that runs the stages, nor torch, nor ONNX.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdturbo.backends import Backend, BackendChoice, Program, Session, load_first
from sdturbo.backends.keep import InpaintingRun
from sdturbo.backends.later import Kind, LaterPrograms
from sdturbo.backends.opening import open_bundle
from sdturbo.backends.protocols import Recorded
from sdturbo.bundle import EMBEDDED, Bundle
from sdturbo.bundle.description import MAX_STEPS, NOISES, TOKENIZER, Size
from sdturbo.clock import CancelToken, Either
from sdturbo.errors import BundleError, InvalidRequest, SDTurboError
from sdturbo.image import ImageInput, to_pixels
from sdturbo.noise import F32, randn
from sdturbo.pipelined import stream
from sdturbo.request import (
    DEFAULT_IMAGES,
    DEFAULT_OUTPUT,
    DEFAULT_SEED,
    DEFAULT_STEPS,
    Filter,
    Job,
    Request,
    Seeds,
    accept,
    check_filter,
    check_prompts,
    pass_pictures,
    pass_prompts,
    pass_request,
)
from sdturbo.result import Result, finish, require_finite, require_pictures
from sdturbo.tokenizer import PromptTokenizer, Tokens

PROMPT_CACHE = 64  # prompts whose embeddings are kept: 64 × 77 × 1024 × 4 B = 20 MB


class Pipeline:
    """One bundle on one backend. Any number of threads may call it.

    It does not change after `load`, but for recordings of inpainting on a device. There are as many of them as of
    image-to-image, and they would make every load longer for requests that may never come. So each is made with the first
    request for its rows of the schedule, and that request takes about three times as long. A recording of image-to-image with a
    mask of ones in it would need no second kind, and would cost every live frame the launches and copies of the mask.
    """

    @classmethod
    def load(
        cls,
        path: str | Path = EMBEDDED,
        backend: str = "auto",
        *,
        revision: str | None = None,
        device: str | None = None,
        precision: str | None = None,
        num_threads: int | None = None,
        image_to_image: bool = True,
        trust_unchanged: bool = True,
        filter: Filter | None = None,
    ) -> Pipeline:
        """Validate the bundle at `path`, choose the backend and compile every stage.

        path: a bundle's directory, or owner/name on the Hugging Face Hub. The default is `tiny`, the toy model of this package.
        revision: branch, tag or commit on the Hub. None is main. A commit that was fetched before needs no network.
        backend: a name of `backends.names()`, or "auto" for the first that runs the bundle.
        device: one that the backend offers, such as "cpu" or "cuda:0". None takes the first that runs.
        precision: one of `backends.PRECISIONS`. None takes the fastest that the device makes of the bundle's graphs.
        num_threads: CPU threads. None takes all. image_to_image: False leaves the encoder out and saves its memory.
        trust_unchanged: a large file of the bundle or of the cache is not hashed again for a week while it is unchanged.
        False hashes everything.
        filter: the caller's own, which looks at every prompt and every picture. What it refuses raises Refused.
        Raises BundleError, BackendUnavailable, HubError, InvalidRequest.
        """
        choice = BackendChoice(backend, device, precision, num_threads)
        bundle = open_bundle(path, revision, backend=choice.backend, trust_unchanged=trust_unchanged)
        return load_first(
            choice, bundle, lambda chosen: cls(bundle, chosen, image_to_image=image_to_image, filter=filter)
        )

    def __init__(
        self, bundle: Bundle, backend: Backend, *, image_to_image: bool = True, filter: Filter | None = None
    ) -> None:
        if filter is not None:
            check_filter(filter)
        self.bundle = bundle
        self.backend = backend
        self._filter = filter
        try:
            self._tokenizer = PromptTokenizer((bundle.path / TOKENIZER).read_text(encoding="utf-8"))
        except Exception as error:  # the Rust library raises bare Exception
            raise BundleError(bundle.path, [f"{TOKENIZER} is no tokenizer: {error}"]) from error
        self._stages = {size: bundle.stages_at(*size) for size in bundle.sizes}
        if not image_to_image:
            for stages in self._stages.values():
                del stages["encoder"]
        self._sessions: dict[tuple[str, int, Size], Session] = {}
        made: dict[tuple[str, int, Size | None], Session] = {}  # a text encoder has no size, and serves all
        for batch_size, size in sorted(product(bundle.batch_sizes, bundle.sizes), key=_work, reverse=True):
            # the smaller ones fit into memory that they may share with the larger
            for name, stage in self._stages[size].items():
                key = (name, batch_size, stage.size)
                if key not in made:
                    graph = bundle.graph(name, batch_size, height=size[0], width=size[1], form=backend.form)
                    made[key] = backend.session(graph, stage, batch_size)
                self._sessions[name, batch_size, size] = made[key]
        self._programs: dict[tuple[bool, range, int, Size], Program] = {}
        runs = [bundle.steps(count) for count in range(1, MAX_STEPS + 1)]
        later = [rows[first:] for rows in runs for first in range(len(rows))] if image_to_image else []
        for batch_size, size in product(bundle.batch_sizes, bundle.sizes):
            sessions = {name: self._sessions[name, batch_size, size] for name in self._stages[size]}
            for from_image, rows in [*((False, rows) for rows in runs), *((True, rows) for rows in later)]:
                if (program := backend.program(sessions, rows, image_to_image=from_image)) is not None:
                    self._programs[from_image, rows, batch_size, size] = program
        self._parts: list[Session | Program] = [*made.values(), *self._programs.values()]
        self._inpainting = LaterPrograms()
        self._image_to_image = image_to_image
        self._prompt_cache: dict[bytes, F32] = {}  # the least recently used first
        self._prompt_lock = threading.Lock()

    @property
    def has_filter(self) -> bool:
        """Whether a caller's own filter looks at every prompt and every picture."""
        return self._filter is not None

    @property
    def lost_recordings(self) -> tuple[str, ...]:
        """Titles of the recordings (CUDA graphs) that could not be made, as the log says. Their work takes longer."""
        lost = [part.title for part in self._parts if isinstance(part, Recorded) and not part.replays]
        return (*lost, *self._inpainting.lost)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        *,
        mask_image: ImageInput | None = None,
        keep_unmasked: bool = True,
        strength: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = DEFAULT_STEPS,
        num_images_per_prompt: int = DEFAULT_IMAGES,
        seed: Seeds = DEFAULT_SEED,
        latents: F32 | None = None,
        prompt_embeds: F32 | None = None,
        output_type: str = DEFAULT_OUTPUT,
        cancel: CancelToken | None = None,
        **others: Any,
    ) -> Result:
        """Draw `num_images_per_prompt` pictures per prompt, in the prompts' order.

        image: the picture to start from (PIL, uint8 (H, W, 3) array, or path). It is resized to the frame.
        mask_image: its white pixels are drawn anew, black ones are kept, as in diffusers. Transparent pixels count as white
        (PIL, path, bool (H, W) or uint8 array). Without it, transparent pixels of `image` are drawn anew.
        keep_unmasked: the image's own pixels are put back outside the mask, after a soft edge of 16 pixels. False leaves
        what the decoder makes of them, as diffusers does.
        strength: the share of it that is drawn anew, 0 to 1. int(num_inference_steps·strength) steps run, as in diffusers.
        None means 0.5, or 1.0 with one step or a mask. num_inference_steps: 1 to 4. num_images_per_prompt: 1 to 1000.
        height, width: of the pictures in pixels, one of `bundle.sizes`. Left out, they are those of the first.
        seed: 0 to 2⁶⁴−1. Image i of the call takes seed + i. A list, range or array holds one seed per image instead. None
        draws a seed, and the result says which. The noise equals torch.randn((1, 4, H/8, W/8)) on a CPU generator with that
        seed. Image i equals the same seed drawn alone.
        latents: noise of text-to-image to use instead, float32 (N, 4, H/8, W/8), standard normal as in diffusers.
        prompt_embeds: used in place of a prompt, float32 (N, 77, width) for N prompts, as `encode_prompt` gives. The result's
        `dropped` and the pictures' parameters then have empty texts in the prompts' place.
        output_type: "pil", "np" (uint8) or "latent".
        cancel: a token that is looked at between stages. A device that records the whole request looks before each batch.
        others: of diffusers' arguments a fresh `generator` of the CPU gives its seed, and values that change nothing, such as
        `guidance_scale=0`, are taken. Others are refused with the reason.
        Raises InvalidRequest, Cancelled, OutputError. With a filter also Refused and FilterFailed.
        """
        job = self._start(
            {
                **cast("Request", others),
                "prompt": prompt,
                "image": image,
                "mask_image": mask_image,
                "keep_unmasked": keep_unmasked,
                "strength": strength,
                "height": height,
                "width": width,
                "num_inference_steps": num_inference_steps,
                "num_images_per_prompt": num_images_per_prompt,
                "seed": seed,
                "latents": latents,
                "prompt_embeds": prompt_embeds,
                "output_type": output_type,
                "cancel": cancel,
            }
        )
        if self._programs and job.is_uninterrupted and (programs := self._programs_for(job)) is not None:
            return self._draw(job, programs)
        return self._decode(self._denoise(self._encode_text(self._encode_image(job))))

    def encode_prompt(self, prompt: str | Sequence[str]) -> F32:
        """The embeddings of N prompts, float32 (N, 77, width), for `prompt_embeds` of a call.

        A call with them draws, bit for bit, what it draws with the prompts. Where a backend joins the stages of a plain call,
        its rounding may differ. Text beyond 77 tokens is not seen, as in a call.
        Raises InvalidRequest, OutputError. With a filter also Refused and FilterFailed.
        """
        prompts = check_prompts(prompt)
        if self._filter is not None:
            pass_prompts(self._filter, prompts)
        return np.stack(self._embeds([self._tokenizer(text) for text in prompts]))

    def dropped_text(self, prompt: str | Sequence[str]) -> list[str]:
        """Per prompt, its end beyond 77 tokens, which `encode_prompt` does not see ("" if it sees all). As `Result.dropped`.

        Raises InvalidRequest.
        """
        return [self._tokenizer(text).dropped for text in check_prompts(prompt)]

    async def generate_async(
        self, prompt: str | Sequence[str] | None = None, image: ImageInput | None = None, **options: Any
    ) -> Result:
        """The same call on a worker thread. Cancelling the task stops the work before its next stage."""
        stop = threading.Event()
        options["cancel"] = Either(stop, options.get("cancel"))
        try:
            return await asyncio.to_thread(self, prompt, image, **options)
        finally:
            stop.set()

    def stream(self, requests: Iterable[Request]) -> Generator[Result | SDTurboError]:
        """The result of each request, in order. Three are under way at once: text n+1 ‖ denoise n ‖ decode n-1.

        It draws more pictures per second than calls where a device has room for several stages. On a CPU they share its
        cores. A single picture is drawn sooner by a call.
        requests: the arguments of one call each, by name. They are taken in the caller's thread, at most
        `pipelined.IN_FLIGHT` ahead of the result that was taken last.
        A request that fails or is cancelled yields its SDTurboError in its place, and the others go on. Any other exception
        is raised and ends the stream, and so is one of `requests`.
        Closing the generator stops the work before its next stage. The three threads have ended when it returns.
        `timings["total"]` contains the time that a request waited between stages.
        """

        def start(request: Request, stop: CancelToken) -> Job:
            return self._encode_image(self._start(request, stop))

        return stream(requests, start, self._encode_text, self._denoise, self._decode)

    def _start(self, request: Request, stop: CancelToken | None = None) -> Job:
        """A checked job with its tokens, and the inputs of its first stage. stop: one more token that cancels it."""
        job = accept(self.bundle, request)
        if job.image is not None and not self._image_to_image:
            raise InvalidRequest("Got an image, but the pipeline was loaded with image_to_image=False.")
        if stop is not None:
            job.clock.cancel = Either(stop, job.clock.cancel)
        if self._filter is not None:
            pass_request(self._filter, job)
        if not job.prompt_embeds:
            with job.clock.part("tokenizer"):
                job.tokens = [self._tokenizer(text) for text in job.prompts]
        if job.image is None:
            with job.clock.part("noise"):
                noise = randn(job.seeds, self._latents_shape(job))[0] if job.latents is None else job.latents
                job.x = noise * np.float32(self.bundle.schedule[0].sigma)
                job.start = {"latents": job.x}
            return job
        with job.clock.part("image"):
            pixels = to_pixels(job.image, *job.size)
        with job.clock.part("noise"):  # an AutoencoderTiny has no posterior
            names = [spec.name for spec in self.bundle.stages["encoder"].inputs if spec.name in NOISES]
            noises = dict(zip(names, randn(job.seeds, self._latents_shape(job), draws=len(names)), strict=True))
        job.start = {"image": [pixels[0]] * len(job.seeds), **noises}
        if job.inpainting is not None:
            job.inpainting.pixels, job.inpainting.noise = pixels[0], noises["noise"]
        return job

    def _encode_image(self, job: Job) -> Job:
        """The image, if there is one, as latents with the noise of the first step added."""
        if job.image is not None:
            with job.clock.part("encoder"):
                start = job.start
                if job.inpainting is not None:  # it adds the noise itself, step by step
                    start = start | {"noise": np.zeros_like(job.inpainting.noise)}
                job.x = self._run(job.size, "encoder", start, step=np.int64(job.rows[0]))
                require_finite(job.x, "encoder")
                if job.inpainting is not None:
                    job.inpainting.latents = job.x
                    job.x = job.inpainting.first(self.bundle.schedule[job.rows[0]].sigma)
        return job

    def _encode_text(self, job: Job) -> Job:
        """prompt_embeds float32 (77, 1024) per image, unless the request gave them."""
        if not job.prompt_embeds:
            with job.clock.part("text_encoder"):
                embeds = self._embeds(job.tokens)
            job.prompt_embeds = [embeds[i // job.images_per_prompt] for i in range(len(job.seeds))]
        return job

    def _embeds(self, prompts: Sequence[Tokens]) -> list[F32]:
        """float32 (77, 1024) per prompt, from the cache or the text encoder."""
        keys = [tokens.input_ids.tobytes() for tokens in prompts]
        with self._prompt_lock:
            embeds = {key: self._prompt_cache[key] for key in keys if key in self._prompt_cache}
        missing = {key: tokens.input_ids[0] for key, tokens in zip(keys, prompts, strict=True) if key not in embeds}
        if missing:
            encoded = self._run(self.bundle.sizes[0], "text_encoder", {"input_ids": list(missing.values())})
            require_finite(encoded, "text encoder")
            embeds |= dict(zip(missing, encoded, strict=True))
        with self._prompt_lock:
            for key in keys:
                self._prompt_cache[key] = self._prompt_cache.pop(key, embeds[key])
            while len(self._prompt_cache) > PROMPT_CACHE:
                del self._prompt_cache[next(iter(self._prompt_cache))]
        return [embeds[key] for key in keys]

    def _denoise(self, job: Job) -> Job:
        """The UNet and the Euler update, once per row of the schedule."""
        for step in job.rows:
            with job.clock.part("denoiser"):
                inputs = {"latents": job.x, "prompt_embeds": job.prompt_embeds}
                job.x = self._run(job.size, "denoiser", inputs, step=np.int64(step))
                require_finite(job.x, f"denoiser at step {step}")
                if job.inpainting is not None:
                    job.x = job.inpainting.after_step(job.x, self.bundle.schedule[step].sigma_next)
        return job

    def _decode(self, job: Job) -> Result:
        if job.ends_in_pictures:
            with job.clock.part("decoder"):
                job.images = self._run(job.size, "decoder", {"latents": job.x})
                require_pictures(job.images, self.backend.precision)
                if job.inpainting is not None:
                    job.images = job.inpainting.finished(job.images)
        return self._finish(job)

    def _draw(self, job: Job, programs: Sequence[Program]) -> Result:
        """All stages at once, batch by batch, where the backend keeps tensors on its device. programs: one per batch."""
        images: list[NDArray[np.uint8]] = []
        given = job.start
        if job.inpainting is not None:
            given = given | {"mask": job.inpainting.masks()}
        for program, (_, rows) in zip(programs, self._batches(len(job.seeds)), strict=True):
            with job.clock.part("engines"):
                input_ids = np.concatenate([job.tokens[row // job.images_per_prompt].input_ids for row in rows])
                start = {name: np.stack([values[row] for row in rows]) for name, values in given.items()}
                outputs = program.run({"input_ids": input_ids, **start})
                require_finite(outputs["latents"], "denoiser")
                require_pictures(outputs["image"], self.backend.precision)
                images.append(outputs["image"])
        job.images = np.concatenate(images)[: len(job.seeds)]
        if job.inpainting is not None:
            with job.clock.part("paste"):
                job.images = job.inpainting.finished(job.images)
        return self._finish(job)

    def _finish(self, job: Job) -> Result:
        if self._filter is not None:
            with job.clock.part("filter"):
                pass_pictures(self._filter, (Image.fromarray(pixels) for pixels in job.images))
        return finish(job, self.bundle, self.backend, self.lost_recordings)

    def _programs_for(self, job: Job) -> list[Program] | None:
        """The recordings of such a request, one per batch. None if one of them cannot be made."""
        sizes = [batch_size for batch_size, _ in self._batches(len(job.seeds))]
        if job.inpainting is None:
            return [self._programs[job.image is not None, job.rows, batch_size, job.size] for batch_size in sizes]
        kinds = [Kind(job.rows, job.inpainting.pure, batch_size, job.size) for batch_size in sizes]
        if all(kind in self._inpainting for kind in kinds):
            programs = [self._inpainting.of(kind, self._record_inpainting) for kind in kinds]
        else:
            with job.clock.part("recording"):
                programs = [self._inpainting.of(kind, self._record_inpainting) for kind in kinds]
        made = [program for program in programs if program is not None]
        return made if len(made) == len(kinds) else None

    def _record_inpainting(self, kind: Kind) -> Program:
        steps = [self.bundle.schedule[row] for row in kind.rows]
        run = InpaintingRun((steps[0].sigma, *(step.sigma_next for step in steps)), kind.pure)
        sessions = {name: self._sessions[name, kind.batch_size, kind.size] for name in self._stages[kind.size]}
        program = self.backend.program(sessions, kind.rows, image_to_image=True, inpainting=run)
        assert program is not None  # the backend joins image-to-image
        return program

    def _run(self, size: Size, stage: str, batched: dict[str, Any], **scalars: Any) -> NDArray[Any]:
        """Run a stage for pictures of that size over N rows, batch by batch."""
        count = len(next(iter(batched.values())))
        outputs: list[NDArray[Any]] = []
        for batch_size, rows in self._batches(count):
            inputs = {name: np.stack([values[row] for row in rows]) for name, values in batched.items()}
            (output,) = self._sessions[stage, batch_size, size].run({**inputs, **scalars}).values()
            outputs.append(output)
        return (np.concatenate(outputs) if len(outputs) > 1 else outputs[0])[:count]

    def _latents_shape(self, job: Job) -> tuple[int, ...]:
        """(1, 4, H/8, W/8)"""
        return self._stages[job.size]["denoiser"].outputs[0].shape_at(1)

    def _batches(self, count: int) -> Iterator[tuple[int, list[int]]]:
        """(batch size, its rows) over N rows in the bundle's batch sizes, the largest first. The last batch is filled up."""
        start = 0
        while start < count:
            size = max((b for b in self.bundle.batch_sizes if b <= count - start), default=self.bundle.batch_sizes[0])
            yield size, [min(start + i, count - 1) for i in range(size)]
            start += size


def _work(batch: tuple[int, Size]) -> int:
    """Pixels of a batch (batch size, size of pictures)."""
    batch_size, (height, width) = batch
    return batch_size * height * width
