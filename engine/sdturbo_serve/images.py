"""OpenAI's images API: POST /v1/images/generations and /v1/images/edits, and GET /v1/models."""

from __future__ import annotations

import base64
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Form
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from sdturbo.bundle.description import Size
from sdturbo.request import DEFAULT_STEPS, check_seeds, check_strength, first_step
from sdturbo_serve.access import admit
from sdturbo_serve.errors import ApiError, mask_without_image, missing, refusals_name
from sdturbo_serve.picture import QueuedPicture, size_text
from sdturbo_serve.schemas import ERRORS, Edit, Generation, ImagesBody, ImagesResponse, Model, ModelList
from sdturbo_serve.service import Service, service_of
from sdturbo_serve.strict import StrictRoute, check_once

router = APIRouter(prefix="/v1", dependencies=[Depends(admit)], responses=ERRORS, route_class=StrictRoute)


@router.post("/images/generations", response_model=ImagesResponse)
async def generations(body: Generation, request: HttpRequest) -> JSONResponse:
    """Draw pictures from a prompt."""
    seeds, size = _check(body, service_of(request))
    steps = body.steps or DEFAULT_STEPS
    return await _answer(body, request, [QueuedPicture(body.prompt, seed, steps, size=size) for seed in seeds])


@router.post("/images/edits", response_model=ImagesResponse)
async def edits(body: Annotated[Edit, Form()], request: HttpRequest) -> JSONResponse:
    """Draw pictures from a prompt and an image to start from. With a mask, a part of the image is drawn anew."""
    service = service_of(request)
    form = await request.form()
    check_once(form, "image", "image[]")
    if "prompt" not in form:
        raise missing("prompt")
    seeds, size = _check(body, service)
    steps = body.steps or DEFAULT_STEPS
    files = [*body.image, *body.image_list]
    if not files and body.mask is not None:
        raise mask_without_image()
    if len(files) != 1:
        raise ApiError(400, f"Got {len(files)} images. Expected one.", param="image", code="invalid_value")
    mask_file = await body.mask.read() if body.mask else None
    image, mask = await service.start_image(await files[0].read(), mask_file, size)
    with refusals_name("strength"):
        strength = check_strength(body.strength, steps, masked=mask is not None)
        first_step(steps, strength)
    pictures = [QueuedPicture(body.prompt, seed, steps, image, strength, mask, size) for seed in seeds]
    return await _answer(body, request, pictures)


@router.get("/models", response_model=ModelList)
def models(request: HttpRequest) -> ModelList:
    """The bundle's model, alone."""
    return ModelList(data=[_model(service_of(request))])


@router.get("/models/{name:path}", response_model=Model)
def model(name: str, request: HttpRequest) -> Model:
    """The bundle's model, by its name."""
    service = service_of(request)
    _check_model(name, service)
    return _model(service)


def _model(service: Service) -> Model:
    bundle = service.pipeline.bundle
    sizes = [size_text(size) for size in bundle.sizes]
    return Model(id=str(bundle.model["name"]), created=service.started, owned_by="sdturbo", sizes=sizes)


def _check_model(name: str, service: Service) -> None:
    expected = _model(service).id
    if name != expected:
        message = f"The model {name[:80]!r} does not exist. This server has {expected!r}."
        raise ApiError(404, message, param="model", code="model_not_found")


def _check(body: ImagesBody, service: Service) -> tuple[list[int], Size]:
    """The seeds and the size of a request whose model this server has. Raises ApiError."""
    if body.model is not None:
        _check_model(body.model, service)
    size = service.size_of(body.size)
    with refusals_name("seed"):
        return check_seeds(body.seed, body.n or 1), size


async def _answer(body: ImagesBody, request: HttpRequest, pictures: list[QueuedPicture]) -> JSONResponse:
    service = service_of(request)
    output_format = body.output_format or "png"
    drawn = await service.draw(pictures, request)
    files, report = await service.encode(drawn, output_format, body.output_compression)
    request.state.log |= {"seed": drawn[0].seed, "wait_ms": report["wait_ms"], "batch_size": report["batch_size"]}
    data = [
        {"b64_json": base64.b64encode(file).decode(), "seed": picture.seed}
        for file, picture in zip(files, drawn, strict=True)
    ]
    content = {
        "created": int(time.time()),
        "data": data,
        "output_format": output_format,
        "size": size_text(service.size_of(body.size)),
        "background": "opaque",
        "sdturbo": report,
    }
    return JSONResponse(content)
