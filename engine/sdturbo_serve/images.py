"""OpenAI's images API: POST /v1/images/generations and /v1/images/edits, and GET /v1/models."""

from __future__ import annotations

import base64
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, Form
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from sdturbo import InvalidRequest
from sdturbo.request import check_seeds, check_strength, first_step
from sdturbo_serve.access import admit
from sdturbo_serve.errors import ApiError, as_api_error
from sdturbo_serve.picture import QueuedPicture
from sdturbo_serve.schemas import ERRORS, Edit, Generation, ImagesBody, ImagesResponse, Model, ModelList
from sdturbo_serve.service import Service, service_of
from sdturbo_serve.strict import StrictRoute, check_once

router = APIRouter(prefix="/v1", dependencies=[Depends(admit)], responses=ERRORS, route_class=StrictRoute)


@router.post("/images/generations", response_model=ImagesResponse)
async def generations(body: Generation, request: HttpRequest) -> JSONResponse:
    """Draw pictures from a prompt."""
    seeds = _check(body, service_of(request))
    return await _answer(body, request, [QueuedPicture(body.prompt, seed, body.steps) for seed in seeds])


@router.post("/images/edits", response_model=ImagesResponse)
async def edits(body: Annotated[Edit, Form()], request: HttpRequest) -> JSONResponse:
    """Draw pictures from a prompt and an image to start from."""
    service = service_of(request)
    check_once(await request.form(), "image", "image[]")
    seeds = _check(body, service)
    files = [*body.image, *body.image_list]
    if len(files) != 1:
        raise ApiError(400, f"Got {len(files)} images. Expected one.", param="image", code="invalid_value")
    with _refusals_name("strength"):
        strength = check_strength(body.strength, body.steps)
        first_step(body.steps, strength)
    with _refusals_name("image"):
        image = await service.start_image(await files[0].read())
    pictures = [QueuedPicture(body.prompt, seed, body.steps, image, strength) for seed in seeds]
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


@contextmanager
def _refusals_name(param: str) -> Generator[None]:
    """The engine's refusals as answers that name the parameter."""
    try:
        yield
    except InvalidRequest as error:
        raise as_api_error(error, param) from error


def _model(service: Service) -> Model:
    return Model(id=str(service.pipeline.bundle.model["name"]), created=service.started, owned_by="sdturbo")


def _check_model(name: str, service: Service) -> None:
    expected = _model(service).id
    if name != expected:
        message = f"The model {name[:80]!r} does not exist. This server has {expected!r}."
        raise ApiError(404, message, param="model", code="model_not_found")


def _check(body: ImagesBody, service: Service) -> list[int]:
    """The seeds of a request whose model and size this server has. Raises ApiError."""
    if body.model is not None:
        _check_model(body.model, service)
    size = _size(service)
    if body.size not in (None, "auto", size):
        raise ApiError(400, f"Got size {body.size!r}. Expected {size!r} or 'auto'.", param="size", code="invalid_value")
    with _refusals_name("seed"):
        return check_seeds(body.seed, body.n)


def _size(service: Service) -> str:
    return f"{service.pipeline.bundle.width}x{service.pipeline.bundle.height}"


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
        "size": _size(service),
        "background": "opaque",
        "sdturbo": report,
    }
    return JSONResponse(content)
