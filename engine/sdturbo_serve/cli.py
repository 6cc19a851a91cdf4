"""The command `sdturbo-serve`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from sdturbo import __version__
from sdturbo.backends import BackendChoice
from sdturbo.commands import console
from sdturbo.commands.bundles import BundleChoice, bundle_options, load_pipeline
from sdturbo.commands.console import FILE, SHOW_DEFAULTS, require_libraries
from sdturbo.commands.options import (
    WITHOUT_METADATA,
    backend_options,
    credentials_option,
    load_credentials,
    metadata_option,
)
from sdturbo_serve.names import listen_host_of
from sdturbo_serve.settings import Settings, answered_hosts, check_listen, find_keys, find_logins

LIBRARIES = ("fastapi", "uvicorn", "httptools", "websockets", "python_multipart", "prometheus_client", "isal")


@click.command(
    context_settings=SHOW_DEFAULTS,
    epilog="Examples:\n\n  sdturbo-serve --bundle build/sd-turbo --port 9000\n\n"
    "  sdturbo-serve --bundle build/sd-turbo --host 0.0.0.0 --api-key-file keys.txt",
)
@bundle_options
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port to listen on.")
@click.option(
    "--api-key-file",
    type=FILE,
    help="File with one key per line. Each key opens /v1 and /metrics. [env: SDTURBO_API_KEYS, separated by commas]",
)
@click.option("--without-key", is_flag=True, help="Listen beyond this machine without a key.")
@click.option(
    "--allow-origin",
    multiple=True,
    help="Origin of a page that may call, such as https://example.org, or * for all. Repeatable.",
)
@click.option(
    "--allow-host",
    multiple=True,
    help="Another name of this machine that requests may use, on loopback without a key, or * for all. Repeatable.",
)
@click.option("--max-queue", type=int, default=64, help="Pictures that may wait. More get 429.")
@click.option("--deadline", "deadline_s", type=float, default=60.0, help="Seconds from request to answer.")
@click.option("--drain", type=click.IntRange(1), default=30, help="Seconds to finish after SIGTERM.")
@click.option("--model-alias", multiple=True, help="Another name that requests may use for the model. Repeatable.")
@click.option(
    "--lenient",
    is_flag=True,
    help="Leave out what requests ask for and this model cannot do, and name it in the answer.",
)
@click.option(
    "--public-url", help="Address of this server for clients. Answers then give links if a request asks for them."
)
@click.option("--link-dir", type=FILE, help="Directory of the linked pictures, which several servers may share.")
@click.option("--link-key-file", type=FILE, help="File with the key of their links, the same for all of these servers.")
@click.option("--a1111", is_flag=True, help="Answer AUTOMATIC1111's API too, at /sdapi/v1.")
@click.option(
    "--api-auth",
    help="name:password, several by commas. They open AUTOMATIC1111's API. [env: SDTURBO_API_AUTH]",
)
@metadata_option
@credentials_option
@click.option(
    "--filter",
    metavar="PACKAGE.MODULE:NAME",
    help="Your own filter of prompts and pictures, an object or a class. engine/examples/own_filter.py shows one.",
)
@backend_options
@click.version_option(__version__)
def cli(
    bundle: BundleChoice,
    host: str,
    port: int,
    api_key_file: Path | None,
    without_key: bool,
    allow_origin: tuple[str, ...],
    allow_host: tuple[str, ...],
    model_alias: tuple[str, ...],
    a1111: bool,
    api_auth: str | None,
    drain: int,
    content_credentials: tuple[Path, Path] | None,
    filter: str | None,
    choice: BackendChoice,
    **others: Any,
) -> None:
    """Serve a bundle over HTTP: OpenAI's images API, live connections and a page."""
    require_libraries("sdturbo-serve", LIBRARIES, "serve")
    keys, host = find_keys(api_key_file), listen_host_of(host)
    check_listen(host, has_key=bool(keys), without_key=without_key)
    hosts = answered_hosts(host, allow_host, has_key=bool(keys))
    settings = Settings(
        api_keys=keys,
        allow_origins=allow_origin,
        allow_hosts=hosts,
        model_aliases=model_alias,
        api_auth=find_logins(api_auth) if a1111 or api_auth is not None else (),
        a1111=a1111,
        **others,
    )

    from sdturbo_serve import logs
    from sdturbo_serve.app import create_app
    from sdturbo_serve.filtering import load_filter
    from sdturbo_serve.links import open_links
    from sdturbo_serve.server import bind, serve

    open_links(settings)  # a directory or key that cannot be used is said before the model is loaded
    credentials = load_credentials(content_credentials)
    own_filter = None if filter is None else load_filter(filter)
    sockets = bind(host, port)
    logs.configure()
    pipeline = load_pipeline(bundle, choice)
    backend = pipeline.backend
    fields = {"backend": backend.name, "precision": backend.precision, "bundle": str(pipeline.bundle.path)}
    log = logging.getLogger("sdturbo.serve")
    log.info("loaded", extra={"fields": fields})
    if not settings.metadata:
        log.info(WITHOUT_METADATA)
    serve(create_app(pipeline, settings, credentials=credentials, filter=own_filter), sockets, drain_s=drain)


def main() -> None:
    """Entry point of the command `sdturbo-serve`."""
    console.main(cli, "sdturbo-serve")
