"""What an answer says about its request and its pictures."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from sdturbo import Bundle, __version__
from sdturbo.image import parameters_of
from sdturbo_serve.a1111.bodies import TextToImage
from sdturbo_serve.a1111.jobs import Job
from sdturbo_serve.a1111.mapping import Mapped
from sdturbo_serve.lenient import shown


def echo(body: TextToImage) -> dict[str, Any]:
    """The request without its files, and without what only scripts and extensions read."""
    known = {name for name in type(body).model_fields if name not in ("init_images", "mask", "override_settings")}
    plain = {
        name: value for name, value in (body.model_extra or {}).items() if name == shown(name) and _is_plain(value)
    }
    return body.model_dump(mode="json", include=known) | plain


def info(body: TextToImage, plan: Mapped, job: Job, bundle: Bundle) -> dict[str, Any]:
    """How the pictures of a job were made, in the fields of AUTOMATIC1111's `info`."""
    seeds = [queued.seed for queued in job.pictures]
    count = len(seeds)
    return {
        "prompt": body.prompt or "",
        "all_prompts": [body.prompt or ""] * count,
        "negative_prompt": "",
        "all_negative_prompts": [""] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": plan.size[1],
        "height": plan.size[0],
        "sampler_name": "Euler",
        "cfg_scale": 1.0,
        "steps": plan.steps,
        "batch_size": body.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": str(bundle.model["name"]),
        "sd_model_hash": bundle.bundle_id[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": plan.strength or 0,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [parameters_of(each.picture) for each in job.drawn],
        "styles": [],
        "job_timestamp": datetime.now().strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": f"sdturbo {__version__}",
    }


def _is_plain(value: Any) -> bool:
    """Whether an answer can repeat a value: short text, whole numbers, finite ones, true, false and null."""
    if isinstance(value, str):
        return value == shown(value)
    return value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
