"""OpenAI's images API: POST /v1/images/generations and /v1/images/edits, and GET /v1/models."""

from __future__ import annotations

import base64
import re
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Form
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from sdturbo.bundle.description import Size
from sdturbo.request import DEFAULT_STEPS, check_seeds, check_strength, first_step
from sdturbo_serve.access import admit
from sdturbo_serve.errors import ApiError, mask_without_image, missing, refusals_name
from sdturbo_serve.lenient import LenientRequest, LenientRoute, in_words, nearest_size
from sdturbo_serve.picture import QueuedPicture, size_text
from sdturbo_serve.schemas import ERRORS, Edit, Generation, ImagesBody, ImagesResponse, Model, ModelList
from sdturbo_serve.service import Service, service_of
from sdturbo_serve.strict import check_once

router = APIRouter(prefix="/v1", dependencies=[Depends(admit)], responses=ERRORS, route_class=LenientRoute)


@router.post("/images/generations", response_model=ImagesResponse)
async def generations(body: Generation, request: LenientRequest) -> JSONResponse:
    """Draw pictures from a prompt."""
    seeds, size = _check(body, request)
    steps = body.steps or DEFAULT_STEPS
    return await _answer(body, request, [QueuedPicture(body.prompt, seed, steps, size=size) for seed in seeds], size)


@router.post("/images/edits", response_model=ImagesResponse)
async def edits(body: Annotated[Edit, Form()], request: LenientRequest) -> JSONResponse:
    """Draw pictures from a prompt and an image to start from. With a mask, a part of the image is drawn anew."""
    service = service_of(request)
    form = await request.form()
    check_once(form, "image", "image[]")
    if "prompt" not in form:
        raise missing("prompt")
    seeds, size = _check(body, request)
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
    return await _answer(body, request, pictures, size)


@router.get("/models", response_model=ModelList)
def models(request: HttpRequest) -> ModelList:
    """The bundle's model, once per name."""
    service = service_of(request)
    return ModelList(data=[_model(service, name) for name in _names(service)])


@router.get("/models/{name:path}", response_model=Model)
def model(name: str, request: HttpRequest) -> Model:
    """The bundle's model, by one of its names."""
    service = service_of(request)
    _check_model(name, service)
    return _model(service, name)


def _names(service: Service) -> list[str]:
    """The name of the bundle's model, then its aliases."""
    return list(dict.fromkeys((str(service.pipeline.bundle.model["name"]), *service.settings.model_aliases)))


def _model(service: Service, name: str) -> Model:
    sizes = [size_text(size) for size in service.pipeline.bundle.sizes]
    return Model(id=name, created=service.started, owned_by="sdturbo", sizes=sizes)


def _check_model(name: str, service: Service) -> None:
    names = _names(service)
    if name not in names:
        message = f"The model {name[:80]!r} does not exist. This server has {', '.join(map(repr, names))}."
        raise ApiError(404, message, param="model", code="model_not_found")


def _check(body: ImagesBody, request: LenientRequest) -> tuple[list[int], Size]:
    """The seeds and the size of a request that this server can answer. Raises ApiError."""
    service = service_of(request)
    if body.model is not None:
        _check_model(body.model, service)
    if body.response_format == "url" and service.links is None:
        text = "This server gives no links, because it was started without --public-url. Expected 'b64_json'."
        raise ApiError(400, text, param="response_format", code="invalid_value")
    try:
        size = service.size_of(body.size)
    except ApiError:
        if not service.settings.lenient:
            raise
        size = _nearest(body.size or "", service)
        request.left_out["size"] = body.size
    with refusals_name("seed"):
        return check_seeds(body.seed, body.n or 1), size


def _nearest(text: str, service: Service) -> Size:
    """The size of the bundle that is most like the asked one, or its default if that is none."""
    sizes, asked = service.pipeline.bundle.sizes, re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    return nearest_size(sizes, int(asked[2]), int(asked[1])) if asked else sizes[0]


async def _answer(body: ImagesBody, request: LenientRequest, pictures: list[QueuedPicture], size: Size) -> JSONResponse:
    service = service_of(request)
    output_format = body.output_format or "png"
    end = service.end_of_request()
    drawn = await service.draw(pictures, request, end)
    files, report = await service.encode(drawn, output_format, end, body.output_compression)
    request.state.log |= {"seed": drawn[0].seed, "wait_ms": report["wait_ms"], "batch_size": report["batch_size"]}
    if body.response_format == "url" and service.links is not None:
        shown = [{"url": await run_in_threadpool(service.links.add, file, output_format)} for file in files]
    else:
        shown = [{"b64_json": base64.b64encode(file).decode()} for file in files]
    data = [{**each, "seed": picture.seed} for each, picture in zip(shown, drawn, strict=True)]
    content = {
        "created": int(time.time()),
        "data": data,
        "output_format": output_format,
        "size": size_text(size),
        "background": "opaque",
        "sdturbo": report | {"not_honoured": in_words(request.left_out)},
    }
    return JSONResponse(content)
