"""The application: routes, the page, and the service behind them."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST

from sdturbo import ContentCredentials, Filter, Pipeline, __version__
from sdturbo_serve import errors, images, links, live
from sdturbo_serve.a1111 import routes as a1111
from sdturbo_serve.a1111.jobs import Jobs
from sdturbo_serve.access import admit
from sdturbo_serve.guard import Guard
from sdturbo_serve.schemas import ERRORS
from sdturbo_serve.service import Service, service_of
from sdturbo_serve.settings import Settings

PAGE = Path(__file__).parent / "page"
POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"

probes = APIRouter()


def create_app(
    pipeline: Pipeline,
    settings: Settings | None = None,
    *,
    credentials: ContentCredentials | None = None,
    filter: Filter | None = None,
) -> FastAPI:
    """The server's application around a loaded pipeline. Its lifespan starts and stops the engine's thread.

    credentials: they sign every picture. filter: it looks at every prompt and every picture, on threads of its own.
    Raises InvalidRequest for a pipeline that has a filter, because that would judge the golden picture too.

    A FastAPI application that mounts it runs only its own lifespan, so enter `app.router.lifespan_context(app)` there.
    engine/examples/fastapi_app.py shows how.
    """
    service = Service(pipeline, settings or Settings(), credentials, filter)
    app = FastAPI(
        title="sdturbo", version=__version__, lifespan=lambda _: service.running(), docs_url=None, redoc_url=None
    )
    app.state.service = service
    app.include_router(images.router)
    app.include_router(live.router)
    app.include_router(probes)
    if service.links is not None:
        app.include_router(links.router)
    if service.settings.a1111:
        app.include_router(a1111.router)
        app.state.jobs = Jobs()
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    errors.install(app)
    if service.settings.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.allow_origins),
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # OpenAI's client sends a dozen of its own, x-stainless-…
            allow_private_network=True,  # which browsers ask for where a public page calls this machine
            expose_headers=["Retry-After", "X-Request-Id", "X-Should-Retry"],  # which it reads
        )
    app.add_middleware(Guard, service=service)
    return app


@probes.get("/", include_in_schema=False)
def page() -> FileResponse:
    return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})


@probes.get("/healthz", responses={503: {"description": "The engine's thread has ended. Restart the server."}})
def healthz(request: HttpRequest) -> JSONResponse:
    """Whether the process can still serve."""
    alive = service_of(request).worker.is_alive
    return JSONResponse({"status": "ok" if alive else "the engine's thread has ended"}, 200 if alive else 503)


@probes.get("/readyz", responses={503: {"description": "Not ready, with the reason."}})
def readyz(request: HttpRequest) -> JSONResponse:
    """Whether the engine has drawn the bundle's golden picture, and its thread lives."""
    reason = service_of(request).unready
    return JSONResponse({"status": reason or "ready"}, 503 if reason else 200)


@probes.get("/metrics", responses=ERRORS, response_class=Response, dependencies=[Depends(admit)])
def metrics(request: HttpRequest) -> Response:
    """Figures for Prometheus."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
