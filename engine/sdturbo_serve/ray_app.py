"""The server on Ray Serve: the same routes, one engine per replica. engine/examples/ray.yaml shows how to run it.

A replica is healthy once its engine has drawn the bundle's golden picture, and as long as the engine's thread lives. Ray
replaces it otherwise. A new bundle in the config file replaces the replicas one after another.
"""

# no `from __future__ import annotations`: Ray reads the builder's annotation as a class
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedClassDecorator=false, reportMissingTypeStubs=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

import dataclasses
from pathlib import Path

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from sdturbo import InvalidRequest, Pipeline
from sdturbo.commands.bundles import where
from sdturbo.commands.options import load_credentials
from sdturbo.files import expanded
from sdturbo_serve import logs
from sdturbo_serve.app import create_app
from sdturbo_serve.filtering import load_filter
from sdturbo_serve.service import Service
from sdturbo_serve.settings import Settings, check_shared_links, find_keys, find_logins


class Options(BaseModel):
    """`args` of the config file. Paths are those of the replica's machine.

    threads: CPU threads per engine. None takes the replica's CPUs from `ray_actor_options`. without_key: serve without a
    key to every client that reaches the proxies. content_credentials: certificate and key that sign pictures. filter: the
    operator's, `package.module:name`. settings: limits, as those of `sdturbo-serve`.
    """

    model_config = ConfigDict(extra="forbid")

    bundle: str | Path
    revision: str | None = None
    backend: str = "auto"
    device: str | None = None
    precision: str | None = None
    threads: int | None = Field(None, ge=1)
    api_key_file: Path | None = None
    without_key: bool = False
    content_credentials: tuple[Path, Path] | None = None
    filter: str | None = None
    settings: Settings = Field(default_factory=Settings)


@serve.deployment(name="sdturbo")
@serve.ingress()
class Replica:
    """One engine with the whole application around it."""

    def __init__(self, options: Options) -> None:
        logs.configure()
        # not in `build`, because Ray stores what `build` binds, and keys must not be stored
        keys = options.settings.api_keys or find_keys(options.api_key_file and expanded(options.api_key_file))
        logins = options.settings.api_auth or (find_logins() if options.settings.a1111 else ())
        settings = dataclasses.replace(options.settings, api_keys=keys, api_auth=logins)
        credentials = load_credentials(options.content_credentials)
        own_filter = None if options.filter is None else load_filter(options.filter)
        threads = options.threads or max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
        pipeline = Pipeline.load(
            where(options.bundle),
            options.backend,
            revision=options.revision,
            device=options.device,
            precision=options.precision,
            num_threads=threads,
        )
        self._application = create_app(pipeline, settings, credentials=credentials, filter=own_filter)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._application

    async def check_health(self) -> None:
        """Called by Ray before the first request and every `health_check_period_s`. Raises NotReady."""
        service: Service = self._application.state.service
        await service.check()


def build(options: Options) -> serve.Application:
    """The application of a config file with `import_path: sdturbo_serve.ray_app:build`. Raises InvalidRequest."""
    keyless = not (options.api_key_file or find_keys(None) or options.settings.api_keys)
    if keyless and not options.without_key:
        raise InvalidRequest(
            "Got no API key. Give api_key_file (or SDTURBO_API_KEYS in runtime_env). If no foreign client reaches"
            " http_options.host, say without_key: true."
        )
    check_shared_links(options.settings)
    return Replica.bind(options)
