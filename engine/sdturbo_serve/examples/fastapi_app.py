"""sdturbo in a FastAPI application of one's own: `uvicorn --factory sdturbo_serve.examples.fastapi_app:make`."""

from fastapi import FastAPI

from sdturbo import Pipeline
from sdturbo_serve import create_app


def make(pipeline: Pipeline | None = None) -> FastAPI:
    draw = create_app(pipeline or Pipeline.load())
    app = FastAPI(lifespan=lambda _: draw.router.lifespan_context(draw))  # starts the engine's thread, and stops it

    @app.get("/hello")
    def hello() -> str:  # pyright: ignore[reportUnusedFunction]
        return "an application with pictures: /pictures/ has the page, /pictures/v1 the API"

    app.mount("/pictures", draw)
    return app
