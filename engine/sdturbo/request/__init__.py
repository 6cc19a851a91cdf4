"""Requests, checked before anything runs. Names and meanings are those of diffusers."""

from sdturbo.request.accept import (
    DEFAULT_IMAGES,
    DEFAULT_OUTPUT,
    DEFAULT_SEED,
    DEFAULT_STEPS,
    Job,
    Request,
    Seeds,
    accept,
    mask_of,
)
from sdturbo.request.checks import (
    MAX_SEED,
    check_count,
    check_prompts,
    check_seeds,
    check_share,
    check_size,
    check_strength,
    first_step,
    random_seed,
)
from sdturbo.request.filtering import Filter, check_filter, pass_pictures, pass_prompts, pass_request

__all__ = [
    "DEFAULT_IMAGES",
    "DEFAULT_OUTPUT",
    "DEFAULT_SEED",
    "DEFAULT_STEPS",
    "MAX_SEED",
    "Filter",
    "Job",
    "Request",
    "Seeds",
    "accept",
    "check_count",
    "check_filter",
    "check_prompts",
    "check_seeds",
    "check_share",
    "check_size",
    "check_strength",
    "first_step",
    "mask_of",
    "pass_pictures",
    "pass_prompts",
    "pass_request",
    "random_seed",
]
