"""A batch of pictures as one call of the pipeline. Pictures with a second prompt are drawn from a blend of both."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from sdturbo import Pipeline, Request, Result
from sdturbo.blend import slerp
from sdturbo.noise import F32
from sdturbo_serve.picture import AllCancelled, QueuedPicture


def draw(pipeline: Pipeline, batch: tuple[QueuedPicture, ...]) -> Result:
    """The result of pictures that go together, in their order. Raises InvalidRequest, Cancelled, OutputError.

    With second prompts, `timings` contains the text encoder's time, and `dropped` the ends of both prompts, one per line.
    """
    start, first = time.perf_counter(), batch[0]
    request: Request = {
        "image": first.image,
        "mask_image": first.mask,
        "strength": first.strength,
        "height": first.size and first.size[0],
        "width": first.size and first.size[1],
        "num_inference_steps": first.steps,
        "seed": [queued.seed for queued in batch],
        "cancel": AllCancelled(batch),
    }
    if first.second_prompt is None:
        request["prompt"] = [queued.prompt for queued in batch]
        return pipeline(**request)
    request["prompt_embeds"] = np.concatenate([_blended(pipeline, queued) for queued in batch])
    milliseconds = (time.perf_counter() - start) * 1e3
    result = pipeline(**request)
    timings = {"text_encoder": milliseconds, **result.timings, "total": result.timings["total"] + milliseconds}
    return replace(result, timings=timings, dropped=[_dropped(pipeline, queued) for queued in batch])


def _blended(pipeline: Pipeline, queued: QueuedPicture) -> F32:
    """float32 (1, 77, width). Prompts are encoded one by one, so that the neighbours in the batch do not matter."""
    start, end = (pipeline.encode_prompt(prompt) for prompt in queued.prompts)
    return slerp(start, end, queued.blend)


def _dropped(pipeline: Pipeline, queued: QueuedPicture) -> str:
    return "\n".join(filter(None, pipeline.dropped_text(queued.prompts)))
