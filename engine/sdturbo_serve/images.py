"""POST /v1/images/generations and /v1/images/edits, GET /v1/models, as OpenAI's clients speak them."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import JSONResponse

from sdturbo import InvalidRequest
from sdturbo.request import check_seeds, check_strength, first_step
from sdturbo_serve.access import admit
from sdturbo_serve.encoding import Format, encode
from sdturbo_serve.errors import ApiError, invalid
from sdturbo_serve.picture import Drawn, Picture
from sdturbo_serve.schemas import ERRORS, Edit, Generation, ImagesResponse, Model, ModelList, Wanted
from sdturbo_serve.service import Service
from sdturbo_serve.strict import StrictRoute, check_once
from sdturbo_serve.uploads import decode_image

router = APIRouter(prefix="/v1", dependencies=[Depends(admit)], responses=ERRORS, route_class=StrictRoute)


@router.post("/images/generations", response_model=ImagesResponse)
async def generations(body: Generation, request: Request) -> JSONResponse:
    """Draw pictures from a prompt."""
    seeds = _check(body, _service(request))
    return await _answer(body, request, [Picture(body.prompt, seed, body.steps) for seed in seeds])


@router.post("/images/edits", response_model=ImagesResponse)
async def edits(body: Annotated[Edit, Form()], request: Request) -> JSONResponse:
    """Draw pictures from a prompt and a picture to start from."""
    service = _service(request)
    check_once(await request.form(), "image", "image[]")
    seeds = _check(body, service)
    files = [*body.image, *body.image_list]
    if len(files) != 1:
        raise ApiError(400, f"Got {len(files)} images; expected one.", param="image", code="invalid_value")
    bundle, limit = service.pipeline.bundle, service.settings.max_image_pixels
    try:
        strength = check_strength(body.strength, body.steps)
        first_step(body.steps, strength)
    except InvalidRequest as error:
        raise invalid(error, "strength") from error
    try:
        image = await asyncio.to_thread(decode_image, await files[0].read(), bundle.height, bundle.width, limit)
    except InvalidRequest as error:
        raise invalid(error, "image") from error
    return await _answer(body, request, [Picture(body.prompt, seed, body.steps, image, strength) for seed in seeds])


@router.get("/models", response_model=ModelList)
def models(request: Request) -> ModelList:
    """The bundle's model, alone."""
    return ModelList(data=[_model(_service(request))])


@router.get("/models/{name:path}", response_model=Model)
def model(name: str, request: Request) -> Model:
    """The bundle's model, by its name."""
    service = _service(request)
    _check_model(name, service)
    return _model(service)


def _service(request: Request) -> Service:
    return request.app.state.service


def _model(service: Service) -> Model:
    return Model(id=model_name(service), created=service.started, owned_by="sdturbo")


def model_name(service: Service) -> str:
    return str(service.pipeline.bundle.model["name"])


def _check_model(name: str, service: Service) -> None:
    if name != model_name(service):
        message = f"The model {name[:80]!r} does not exist; this server has {model_name(service)!r}."
        raise ApiError(404, message, param="model", code="model_not_found")


def _check(body: Wanted, service: Service) -> list[int]:
    """The seeds of a request whose model and size this server has. Raises ApiError."""
    if body.model is not None:
        _check_model(body.model, service)
    size = picture_size(service)
    if body.size not in (None, "auto", size):
        raise ApiError(400, f"Got size {body.size!r}; expected {size!r} or 'auto'.", param="size", code="invalid_value")
    try:
        return check_seeds(secrets.randbits(32) if body.seed is None else body.seed, body.n)
    except InvalidRequest as error:
        raise invalid(error, "seed") from error


def picture_size(service: Service) -> str:
    return f"{service.pipeline.bundle.width}x{service.pipeline.bundle.height}"


async def _answer(body: Wanted, request: Request, pictures: list[Picture]) -> JSONResponse:
    service = _service(request)
    output_format: Format = body.output_format or "png"
    drawn = await service.draw(pictures, lambda: _disconnected(request))
    start = time.perf_counter()
    files = [await asyncio.to_thread(encode, one.image, output_format, body.output_compression) for one in drawn]
    encode_ms = (time.perf_counter() - start) * 1e3
    service.metrics.encoding.labels(output_format).observe(encode_ms / 1e3 / len(files))
    report = report_of(service, pictures[0], drawn) | {"encode_ms": round(encode_ms, 3)}
    request.state.log |= {"seed": drawn[0].seed, "wait_ms": report["wait_ms"], "batch_size": report["batch_size"]}
    content = {
        "created": int(time.time()),
        "data": [
            {"b64_json": base64.b64encode(file).decode(), "seed": one.seed}
            for file, one in zip(files, drawn, strict=True)
        ],
        "output_format": output_format,
        "size": picture_size(service),
        "background": "opaque",
        "sdturbo": report,
    }
    return JSONResponse(content)


def report_of(service: Service, picture: Picture, drawn: list[Drawn]) -> dict[str, Any]:
    """How pictures were made, for the answer; times are those of the picture that took longest."""
    slowest = max(drawn, key=lambda one: one.timings_ms["total"])
    backend = service.pipeline.backend
    return {
        "backend": backend.name,
        "device": backend.device,
        "precision": backend.precision,
        "bundle_id": service.pipeline.bundle.bundle_id,
        "decoder": service.pipeline.bundle.decoder,
        "steps": picture.steps,
        "strength": picture.strength,
        "timings_ms": {name: round(ms, 3) for name, ms in slowest.timings_ms.items()},
        "wait_ms": round(max(one.wait_ms for one in drawn), 3),
        "batch_size": slowest.batch_size,
        "dropped": drawn[0].dropped,
    }


async def _disconnected(request: Request) -> None:
    """Returns when the client closes its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
