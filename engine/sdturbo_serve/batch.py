"""A batch of pictures as one call of the pipeline. Pictures with a second prompt are drawn from a blend of both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sdturbo import Pipeline, Request, Result
from sdturbo.blend import slerp
from sdturbo.noise import F32
from sdturbo_serve.picture import AllCancelled, QueuedPicture


def draw(pipeline: Pipeline, batch: Sequence[QueuedPicture]) -> Result:
    """The result of pictures that go together, in their order. Raises InvalidRequest, Cancelled, OutputError.

    With second prompts, `timings` contains the text encoder's time, and `dropped` the ends of both prompts, one per line.
    """
    first = batch[0]
    call: Request = {
        "image": first.image,
        "mask_image": first.mask,
        "strength": first.strength,
        "height": first.size and first.size[0],
        "width": first.size and first.size[1],
        "num_inference_steps": first.steps,
        "seed": [queued.seed for queued in batch],
        "cancel": AllCancelled(tuple(batch)),
    }
    if first.second_prompt is None:
        return pipeline([queued.prompt for queued in batch], **call)
    start = time.perf_counter()
    embeds = np.concatenate([_blended(pipeline, queued) for queued in batch])
    milliseconds = (time.perf_counter() - start) * 1e3
    result = pipeline(prompt_embeds=embeds, **call)
    total = result.timings["total"] + milliseconds
    timings = {"text_encoder": milliseconds, **result.timings, "total": total}
    return replace(result, timings=timings, dropped=[_dropped(pipeline, queued) for queued in batch])


def _blended(pipeline: Pipeline, queued: QueuedPicture) -> F32:
    """float32 (1, 77, width). Prompts are encoded one by one, so that the neighbours in the batch do not matter."""
    return slerp(*(pipeline.encode_prompt(prompt) for prompt in queued.prompts), queued.blend)


def _dropped(pipeline: Pipeline, queued: QueuedPicture) -> str:
    return "\n".join(filter(None, pipeline.dropped_text(queued.prompts)))
