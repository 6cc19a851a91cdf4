"""Bodies of requests. Unknown fields are taken, because there are as many as extensions of AUTOMATIC1111's program."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from sdturbo_serve.schemas import Prompt, Seed

MOST_PICTURES = 64  # batch_size·n_iter

Count = Annotated[int, Field(ge=1, le=MOST_PICTURES)]
Side = Annotated[int, Field(ge=1, le=100_000)]


class TextToImage(BaseModel):
    """The fields that have a meaning here. All others change nothing and are named in `info`, unless they are off."""

    model_config = ConfigDict(extra="allow")

    prompt: Prompt | None = None
    seed: Seed = None
    batch_size: Count | None = None
    n_iter: Count | None = None
    steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    width: Side | None = None
    height: Side | None = None
    send_images: bool | None = None
    override_settings: dict[str, Any] | None = None


class ImageToImage(TextToImage):
    """init_images, mask: base64, with or without "data:image/…;base64," before it. White is drawn anew, or opaque parts."""

    init_images: list[str] | None = None
    mask: str | None = None
    inpainting_mask_invert: int | None = None
    denoising_strength: Annotated[float, Field(ge=0, le=1)] | None = None


class Image64(BaseModel):
    image: str


class Pictures(BaseModel):
    """images: PNG files in base64. info: JSON text."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class PngInfo(BaseModel):
    info: str
    items: dict[str, str]
    parameters: dict[str, str]
