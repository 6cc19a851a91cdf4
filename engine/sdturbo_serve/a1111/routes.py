"""The routes of /sdapi/v1."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from sdturbo.request import check_seeds
from sdturbo_serve.a1111.bodies import MOST_PICTURES, Image64, ImageToImage, Pictures, PngInfo, TextToImage
from sdturbo_serve.a1111.files import settings_of, start_and_mask, text_of
from sdturbo_serve.a1111.info import echo, info
from sdturbo_serve.a1111.jobs import Job, Jobs
from sdturbo_serve.a1111.mapping import Mapped, mapped
from sdturbo_serve.access import admit_login
from sdturbo_serve.errors import ApiError, missing, refusals_name
from sdturbo_serve.lenient import shown
from sdturbo_serve.picture import QueuedPicture
from sdturbo_serve.schemas import ERRORS
from sdturbo_serve.service import Service, service_of
from sdturbo_serve.strict import StrictRoute
from sdturbo_serve.uploads import decode_base64


class _LoginRoute(StrictRoute):
    """A route that checks the login before it reads the body. FastAPI's dependencies run after that, and bodies are large."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: HttpRequest) -> Response:
            admit_login(request)
            return await handler(request)

        return handle


router = APIRouter(prefix="/sdapi/v1", responses=ERRORS, route_class=_LoginRoute, tags=["a1111"])
_EMPTY_LISTS = (
    "face-restorers",
    "hypernetworks",
    "latent-upscale-modes",
    "loras",
    "prompt-styles",
    "realesrgan-models",
    "sd-modules",
    "sd-vae",
    "upscalers",
)


@router.post("/txt2img", response_model=Pictures)
async def txt2img(body: TextToImage, request: HttpRequest) -> JSONResponse:
    """Draw pictures from a prompt."""
    service = service_of(request)
    plan = _plan(body, service)
    pictures = [QueuedPicture(body.prompt or "", seed, plan.steps, size=plan.size) for seed in _seeds(body, plan)]
    return await _answer(body, plan, pictures, request)


@router.post("/img2img", response_model=Pictures)
async def img2img(body: ImageToImage, request: HttpRequest) -> JSONResponse:
    """Draw pictures from a prompt and an image to start from. With a mask, a part of the image is drawn anew."""
    service = service_of(request)
    if not body.init_images:
        raise missing("init_images")
    if len(body.init_images) > 1:
        text = f"Got {len(body.init_images)} init_images. Expected one."
        raise ApiError(400, text, param="init_images", code="invalid_value")
    plan = _plan(body, service)
    seeds = _seeds(body, plan)
    image, mask = await run_in_threadpool(
        start_and_mask,
        body.init_images[0],
        body.mask or None,
        plan.size,
        service.settings.max_image_pixels,
        inverted=bool(body.inpainting_mask_invert),
    )
    prompt = body.prompt or ""
    pictures = [QueuedPicture(prompt, seed, plan.steps, image, plan.strength, mask, plan.size) for seed in seeds]
    return await _answer(body, plan, pictures, request)


@router.post("/png-info", response_model=PngInfo)
async def png_info(body: Image64) -> JSONResponse:
    """The text in a picture's file, and its parts."""

    def read() -> tuple[str, dict[str, str]]:
        text = text_of(decode_base64(body.image))
        return text, settings_of(text)

    with refusals_name("image"):
        text, settings = await run_in_threadpool(read)
    items = {"parameters": text} if text else {}
    return JSONResponse({"info": text, "items": items, "parameters": settings})


@router.get("/options")
def options(request: HttpRequest) -> dict[str, Any]:
    """The few settings that say something true here."""
    service = service_of(request)
    return {
        "sd_model_checkpoint": _title(service),
        "sd_checkpoint_hash": service.pipeline.bundle.bundle_id,
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
        "enable_pnginfo": service.settings.metadata,
    }


@router.post("/options")
def set_options(body: Annotated[dict[str, Any], Body()], request: HttpRequest) -> dict[str, dict[str, str]] | None:
    """Choose the bundle's model, which is chosen already. Nothing else can be set, and the answer names what was asked."""
    service = service_of(request)
    name = body.get("sd_model_checkpoint")
    if name is not None and name not in _names(service):
        text = f"The model {shown(name)!r} does not exist. This server has {_title(service)!r}."
        raise ApiError(404, text, param="sd_model_checkpoint", code="model_not_found")
    have = {**options(request), "sd_model_checkpoint": name}
    asked = [(key, value) for key, value in body.items() if have.get(key) != value]
    if not asked:
        return None
    return {"not_honoured": {shown(key): f"{shown(value)} changes nothing" for key, value in asked[:20]}}


@router.get("/sd-models")
def sd_models(request: HttpRequest) -> list[dict[str, str | None]]:
    """The bundle's model, alone."""
    service = service_of(request)
    name, bundle_id = str(service.pipeline.bundle.model["name"]), service.pipeline.bundle.bundle_id
    model = {"title": _title(service), "model_name": name, "hash": bundle_id[:10], "sha256": None, "filename": name}
    return [model | {"config": None}]


@router.get("/samplers")
def samplers() -> list[dict[str, Any]]:
    """SD-Turbo's own, whatever a request names."""
    return [{"name": "Euler", "aliases": ["k_euler"], "options": {}}]


@router.get("/schedulers")
def schedulers() -> list[dict[str, Any]]:
    """The spacing of steps that SD-Turbo was trained for."""
    return [{"name": "automatic", "label": "Automatic", "aliases": [], "default_rho": -1.0, "need_inner_model": False}]


@router.get("/scripts")
def scripts() -> dict[str, list[str]]:
    return {"txt2img": [], "img2img": []}


@router.get("/embeddings")
def embeddings() -> dict[str, dict[str, Any]]:
    return {"loaded": {}, "skipped": {}}


@router.get("/cmd-flags")
def cmd_flags() -> dict[str, Any]:
    return {"api": True}


@router.post("/refresh-checkpoints")
def refresh_checkpoints() -> None:
    """Does nothing: a server has one bundle."""


@router.get("/progress")
async def progress(request: HttpRequest) -> dict[str, Any]:
    """How far the oldest request is, by its drawn pictures."""
    jobs: Jobs = request.app.state.jobs
    job = jobs.current
    done, count = (len(job.drawn), len(job.pictures)) if job else (0, 0)
    state = {
        "skipped": False,
        "interrupted": bool(job and job.interrupted.is_set()),
        "stopping_generation": False,
        "job": "sdturbo" if job else "",
        "job_count": len(jobs),
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": job.pictures[0].steps if job else 0,
    }
    share = max(0.01, done / count) if count else 0.0  # as AUTOMATIC1111: a request under way is never at 0
    return {"progress": share, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}


@router.post("/interrupt")
async def interrupt(request: HttpRequest) -> dict[str, str]:
    """End the oldest request. Its answer has the pictures that are drawn already."""
    jobs: Jobs = request.app.state.jobs
    if (job := jobs.current) is not None:
        job.interrupted.set()
    return {}


async def _nothing() -> list[str]:
    """What this server has not."""
    return []


for _path in _EMPTY_LISTS:
    router.add_api_route(f"/{_path}", _nothing, methods=["GET"], name=_path)


def _title(service: Service) -> str:
    """The model as AUTOMATIC1111's program names it."""
    bundle = service.pipeline.bundle
    return f"{bundle.model['name']} [{bundle.bundle_id[:10]}]"


def _names(service: Service) -> tuple[str, ...]:
    return (_title(service), str(service.pipeline.bundle.model["name"]), *service.settings.model_aliases)


def _plan(body: TextToImage, service: Service) -> Mapped:
    plan = mapped(body, tuple(service.pipeline.bundle.sizes), _names(service))
    if plan.count > MOST_PICTURES:
        text = f"Got batch_size·n_iter = {plan.count}. Expected at most {MOST_PICTURES} pictures."
        raise ApiError(400, text, param="n_iter", code="invalid_value")
    return plan


def _seeds(body: TextToImage, plan: Mapped) -> list[int]:
    with refusals_name("seed"):
        return check_seeds(body.seed, plan.count)


async def _answer(body: TextToImage, plan: Mapped, pictures: list[QueuedPicture], request: HttpRequest) -> JSONResponse:
    service, jobs = service_of(request), request.app.state.jobs
    end = service.end_of_request()
    job: Job = await jobs.draw(service, pictures, request, end)
    files: list[bytes] = []
    report: dict[str, Any] = {}
    if drawn := job.drawn:
        files, report = await service.encode(drawn, "png", end)
        request.state.log |= {"seed": drawn[0].seed, "batch_size": report["batch_size"]}
    report |= {"not_honoured": plan.not_honoured, "interrupted": job.interrupted.is_set()}
    sent = files if body.send_images is not False else []
    content = {
        "images": [base64.b64encode(file).decode() for file in sent],
        "parameters": echo(body),
        "info": json.dumps(info(body, plan, job, service.pipeline.bundle) | {"sdturbo": report}),
    }
    return JSONResponse(content)
