"""sdturbo behind HTTP: a server with OpenAI's images API and a page. The same application runs on Ray Serve.

    from sdturbo import Pipeline
    from sdturbo_serve import Settings, create_app
    app = create_app(Pipeline.load("build/sd-turbo"), Settings())

The command `sdturbo-serve` runs that application with uvicorn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdturbo_serve.settings import Settings

if TYPE_CHECKING:
    from sdturbo_serve.app import create_app

__all__ = ["Settings", "create_app"]


def __getattr__(name: str) -> Any:
    if name == "create_app":  # needs the extra `serve`, which the command may have to ask for
        from sdturbo_serve.app import create_app

        return create_app
    raise AttributeError(f"module 'sdturbo_serve' has no attribute {name!r}")
