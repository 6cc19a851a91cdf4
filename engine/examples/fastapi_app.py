"""sdturbo in your own FastAPI application: `uvicorn --app-dir engine/examples --factory fastapi_app:make`."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from sdturbo import Pipeline
from sdturbo_serve import create_app


def make(pipeline: Pipeline | None = None) -> FastAPI:
    """An application with a route of its own, and with sdturbo's page and routes under /pictures."""
    pictures = create_app(pipeline or Pipeline.load("build/sd-turbo"))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with pictures.router.lifespan_context(pictures):  # starts the engine's thread, and stops it
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/hello")
    def hello() -> str:  # pyright: ignore[reportUnusedFunction]
        return "an application with pictures: /pictures/ has the page, /pictures/v1 the API"

    app.mount("/pictures", pictures)
    return app
