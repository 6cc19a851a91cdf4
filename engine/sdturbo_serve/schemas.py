"""Bodies of requests and answers. Names are those of OpenAI's images API, plus seed, steps and strength."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from sdturbo.bundle.description import MAX_STEPS
from sdturbo.request import DEFAULT_STEPS, MAX_SEED
from sdturbo_serve.encoding import Format

MAX_PROMPT, MAX_PICTURES = 4000, 10
_TEXT = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$"  # no control character but tab and ends of lines


def _not_asked_for(value: bool) -> bool:
    if value:
        raise PydanticCustomError("true", "Expected false or null")
    return value


def _printable(text: str) -> str:
    if not re.fullmatch(_TEXT, text):
        raise PydanticCustomError("control_character", "Expected text without NUL and other control characters")
    return text


Prompt = Annotated[str, Field(max_length=MAX_PROMPT, json_schema_extra={"pattern": _TEXT}), AfterValidator(_printable)]
Seed = Annotated[  # -1 is what AUTOMATIC1111's clients send for a random one
    Annotated[int, Field(ge=-1, le=MAX_SEED)] | None,
    Field(description="Of the first picture. Picture i takes seed + i. Default, and -1: random."),
    AfterValidator(lambda seed: None if seed == -1 else seed),
]
Steps = Annotated[int | None, Field(ge=1, le=MAX_STEPS, description=f"num_inference_steps. Default: {DEFAULT_STEPS}.")]
SizeText = Annotated[
    str, Field(max_length=20, description='Width x height, one of the bundle\'s, such as "512x512", or "auto".')
]
# not Literal[False]: the text "false" of a form is none
False_ = Annotated[bool, AfterValidator(_not_asked_for), WithJsonSchema({"type": "boolean", "enum": [False]})]
Strength = Annotated[float, Field(gt=0, le=1, description="The part of the image that is drawn anew.")]


class ImagesBody(BaseModel):
    """Fields of both routes. Those of OpenAI's that this server cannot honour take only values without an effect."""

    prompt: Prompt
    model: str | None = Field(None, max_length=200, description="The name of the bundle's model, or an alias of it.")
    n: int | None = Field(None, ge=1, le=MAX_PICTURES, description="Default: 1.")
    size: SizeText | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Format | None = Field(None, description="Default: png.")
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of JPEG and WebP.")
    seed: Seed = None
    steps: Steps = None
    quality: Literal["auto"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    style: None = None
    complexity: None = None
    svg: None = None
    frame_count: int | None = Field(None, ge=2, le=16, description="Of GIF files, which this server does not write.")
    frame_duration_ms: int | None = Field(None, ge=0, description="Of GIF files.")
    stream: False_ | None = None
    partial_images: int | None = Field(None, ge=0, le=3, description="Of streams, which this server does not send.")
    user: str | None = Field(None, max_length=1000)
    safety_identifier: str | None = Field(None, max_length=1000)


class Generation(ImagesBody):
    model_config = ConfigDict(extra="forbid", strict=True)


class Edit(ImagesBody):
    """Form fields are text, so numbers may come as text. FastAPI takes empty text for a field that was left out."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"required": ["prompt"]})

    prompt: Prompt = ""
    image: list[UploadFile] = Field(
        default_factory=list[UploadFile], max_length=1, description="PNG, JPEG, WebP, GIF or AVIF."
    )
    image_list: list[UploadFile] = Field(default_factory=list[UploadFile], alias="image[]", max_length=1)
    mask: UploadFile | None = Field(
        None,
        description="PNG, JPEG, WebP, GIF or AVIF. Its transparent pixels are drawn anew, or the white ones if it has none."
        " Default: the image's transparent pixels.",
    )
    markup: None = None
    input_fidelity: Literal["low"] | None = None
    strength: Strength | None = Field(None, description="Default: 0.5, or 1 with one step or a mask.")


class LiveRequest(BaseModel):
    """A message of a live connection. image, mask: base64, with or without "data:image/…;base64," before it.

    The mask means what it means for edits. With a second prompt, the picture is drawn from the arc between both.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Prompt
    second_prompt: Prompt | None = None
    blend: float | None = Field(None, ge=0, le=1, description="0 is the prompt, 1 the second one. Default: 0.5.")
    seed: Seed = None
    steps: Steps = None
    image: str | None = None
    mask: str | None = None
    strength: Strength | None = None
    size: SizeText | None = None
    skip_similar: float | None = Field(
        None,
        ge=0,
        le=255,
        description="For cameras: an image that is on average less than this many levels of 255 from the last drawn one is"
        " skipped, for at most 5 s, unless another field changed. Default: nothing is skipped.",
    )
    output_format: Format | None = Field(None, description="Default: jpeg.")


class ImageData(BaseModel):
    """A picture in base64, or a link to it, as `response_format` asks."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class Report(BaseModel):
    """The making of the pictures. timings_ms: milliseconds per part of the slowest picture's batch.

    dropped: the end of the prompt that the model did not see. With two prompts it is the ends of both, one per line.
    lost_recordings: CUDA graphs that could not be made.
    decoder: "AutoencoderKL", or "AutoencoderTiny" and its name.
    """

    backend: str
    device: str
    precision: str
    bundle_id: str
    decoder: str
    lost_recordings: list[str]
    steps: int
    strength: float | None
    timings_ms: dict[str, float]
    wait_ms: float
    encode_ms: float
    batch_size: int
    dropped: str


class ImagesReport(Report):
    """not_honoured: fields that a lenient server left out, with what they asked for."""

    not_honoured: dict[str, str]


class ImagesResponse(BaseModel):
    created: int
    data: list[ImageData]
    output_format: Format
    size: str
    background: Literal["opaque"] = "opaque"
    sdturbo: ImagesReport


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorDetail


class Model(BaseModel):
    """sizes: width x height of the pictures that it draws. The first is the default."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    sizes: list[str]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 503, 504)
}
