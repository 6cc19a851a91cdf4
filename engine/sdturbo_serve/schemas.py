"""What clients may ask for. Names are those of OpenAI's images API, plus seed, steps and strength."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from sdturbo.bundle.description import MAX_STEPS
from sdturbo.request import DEFAULT_STEPS, MAX_SEED
from sdturbo_serve.encoding import Format

MAX_PROMPT, MAX_PICTURES = 4000, 10
_CONTROL = {chr(code) for code in (*range(32), *range(127, 160))} - set("\t\n\r")


def _printable(text: str) -> str:
    if not _CONTROL.isdisjoint(text):
        raise PydanticCustomError("control_character", "a NUL or another control character is not text")
    return text


Prompt = Annotated[
    str,
    Field(max_length=MAX_PROMPT, json_schema_extra={"pattern": r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$"}),
    AfterValidator(_printable),
]
Seed = Annotated[
    int, Field(ge=0, le=MAX_SEED, description="Of the first picture; picture i takes seed + i. Default: random.")
]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS, description="num_inference_steps")]
Strength = Annotated[float, Field(gt=0, le=1, description="How much of the start picture is drawn anew.")]


class Wanted(BaseModel):
    """Both routes' fields. A field of OpenAI's that this server cannot honour takes only the values that change nothing."""

    prompt: Prompt
    model: str | None = Field(None, max_length=200, description="The name of the bundle's model, or left out.")
    n: int = Field(1, ge=1, le=MAX_PICTURES)
    size: str | None = Field(None, max_length=20, description='The bundle\'s size, such as "512x512", or "auto".')
    response_format: Literal["b64_json"] | None = None
    output_format: Format | None = Field(None, description="Default: png.")
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of JPEG and WebP.")
    seed: Seed | None = None
    steps: Steps = DEFAULT_STEPS
    quality: Literal["auto"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: Literal[False] | None = None
    user: str | None = Field(None, max_length=1000)


class Generation(Wanted):
    model_config = ConfigDict(extra="forbid", strict=True)


class Edit(Wanted):
    """Form fields are text, so numbers are read from it."""

    model_config = ConfigDict(extra="forbid")

    image: list[UploadFile] = Field(default_factory=list[UploadFile], max_length=1, description="PNG, JPEG or WebP.")
    image_list: list[UploadFile] = Field(default_factory=list[UploadFile], alias="image[]", max_length=1)
    strength: Strength | None = Field(None, description="Default: 0.5, or 1 with one step.")


class LiveRequest(BaseModel):
    """A message of the live stream. image: base64, with or without "data:image/…;base64," before it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Prompt
    seed: Seed | None = None
    steps: Steps = DEFAULT_STEPS
    image: str | None = None
    strength: Strength | None = None
    output_format: Format = "jpeg"


class ImageData(BaseModel):
    b64_json: str
    seed: int


class Report(BaseModel):
    """How the pictures were made. timings_ms: of the slowest picture's batch. dropped: what the model did not see.

    decoder: "AutoencoderKL", or "AutoencoderTiny" and its name.
    """

    backend: str
    device: str
    precision: str
    bundle_id: str
    decoder: str
    steps: int
    strength: float | None
    timings_ms: dict[str, float]
    wait_ms: float
    encode_ms: float
    batch_size: int
    dropped: str


class ImagesResponse(BaseModel):
    created: int
    data: list[ImageData]
    output_format: Format
    size: str
    background: Literal["opaque"] = "opaque"
    sdturbo: Report


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorDetail


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


STATUSES = (400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 503, 504)
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in STATUSES}
