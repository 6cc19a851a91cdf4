"""sdturbo behind HTTP: a server with OpenAI's images API and a page. The same application runs on Ray Serve.

    from sdturbo import Pipeline
    from sdturbo_serve import Settings, create_app
    app = create_app(Pipeline.load("build/sd-turbo"), Settings())

The command `sdturbo-serve` runs that application with uvicorn.
"""

from __future__ import annotations

from sdturbo_serve.app import create_app
from sdturbo_serve.settings import Settings

__all__ = ["Settings", "create_app"]
