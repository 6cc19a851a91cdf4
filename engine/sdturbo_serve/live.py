"""WS /v1/live: the newest request wins.

The client sends JSON (`LiveRequest`); its n-th message is frame n. The answer to a frame is a text message
{"type": "frame", "frame": n, …} followed by one binary message, the picture; or {"type": "error", "frame": n, "error": …}.
A request that a newer one replaced before the engine began with it gets no answer of its own: the newer one's is its.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any, cast

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from sdturbo import SDTurboError
from sdturbo.request import check_strength, first_step
from sdturbo_serve.access import SUBPROTOCOL, admit
from sdturbo_serve.encoding import encode
from sdturbo_serve.errors import ApiError, deadline_exceeded, from_engine, from_validation
from sdturbo_serve.images import report_of
from sdturbo_serve.picture import Drawn, Picture
from sdturbo_serve.schemas import LiveRequest
from sdturbo_serve.service import Service
from sdturbo_serve.strict import parse_json
from sdturbo_serve.uploads import decode_base64, decode_image

MESSAGES_A_SECOND = 200  # faster than anybody types or draws
POLICY_VIOLATION = 1008

router = APIRouter()


@router.websocket("/v1/live")
async def live(websocket: WebSocket) -> None:
    service = cast("Service", websocket.app.state.service)
    try:
        admit(websocket)
        if service.open_streams >= service.settings.max_live:
            raise ApiError(
                429, f"{service.open_streams} live streams are open; try again later.", code="too_many_streams"
            )
    except ApiError as error:
        await websocket.send_denial_response(JSONResponse(error.body(), error.status_code))
        return
    offered = [one.strip() for one in websocket.headers.get("sec-websocket-protocol", "").split(",")]
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    with service.stream():
        await Stream(websocket, service).run()


@router.websocket("/{path:path}")
async def elsewhere(websocket: WebSocket) -> None:
    error = ApiError(404, "There is no such WebSocket; expected /v1/live.")
    await websocket.send_denial_response(JSONResponse(error.body(), error.status_code))


class Stream:
    """One client: a reader that keeps the newest request, and a drawer that has one picture in the queue at most."""

    def __init__(self, websocket: WebSocket, service: Service) -> None:
        self._websocket = websocket
        self._service = service
        self._newest: tuple[int, LiveRequest] | None = None
        self._arrived = asyncio.Event()
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        drawer = asyncio.create_task(self._draw_newest())
        reader = asyncio.create_task(self._read())
        try:
            done, _ = await asyncio.wait({drawer, reader}, return_when="FIRST_COMPLETED")
            for task in done:
                task.result()
        except WebSocketDisconnect:
            pass
        finally:
            for task in (drawer, reader):
                task.cancel()
            await asyncio.gather(drawer, reader, return_exceptions=True)

    async def _read(self) -> None:
        frame, second, count = 0, 0, 0
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            now = int(time.monotonic())
            second, count = (second, count + 1) if now == second else (now, 1)
            if count > MESSAGES_A_SECOND:
                await self._websocket.close(POLICY_VIOLATION, f"more than {MESSAGES_A_SECOND} messages a second")
                return
            frame += 1
            try:
                request = LiveRequest.model_validate(parse_json(message.get("text") or ""))
            except ApiError as error:
                await self._send_error(frame, error)
                continue
            except ValidationError as error:
                await self._send_error(frame, from_validation(error.errors(include_url=False, include_input=False)))
                continue
            if self._newest is not None:
                self._service.metrics.frames.labels("superseded").inc()
            self._newest = (frame, request)
            self._arrived.set()

    async def _draw_newest(self) -> None:
        while True:
            await self._arrived.wait()
            frame, request = self._take()
            try:
                picture = await self._picture(request)
                self._service.submit([picture])
                frame, request, picture, drawn = await self._drawn(frame, request, picture)
            except (ApiError, SDTurboError) as error:
                await self._send_error(frame, error)
                continue
            await self._send_frame(frame, request, picture, drawn)

    async def _drawn(
        self, frame: int, request: LiveRequest, picture: Picture
    ) -> tuple[int, LiveRequest, Picture, Drawn]:
        """Wait for a queued picture, letting newer requests take its place until the engine begins with it."""
        deadline = time.monotonic() + self._service.settings.deadline_s
        waiting = asyncio.wrap_future(picture.drawn)
        try:
            while True:
                newer = asyncio.create_task(self._arrived.wait())
                left = deadline - time.monotonic()
                try:
                    await asyncio.wait({waiting, newer}, timeout=left, return_when="FIRST_COMPLETED")
                finally:
                    newer.cancel()
                if not waiting.done() and self._newest is not None:
                    newest = self._newest
                    try:
                        replacement = await self._picture(newest[1])
                    except SDTurboError as error:  # it takes nobody's place
                        if self._newest is newest:
                            self._take()
                        await self._send_error(newest[0], error)
                        continue
                    if not waiting.done() and self._service.worker.swap(picture, replacement):
                        if self._newest is newest:
                            self._take()
                        self._service.metrics.frames.labels("superseded").inc()
                        (frame, request), picture = newest, replacement
                        waiting.cancel()
                        waiting = asyncio.wrap_future(picture.drawn)
                        continue
                    await asyncio.wait({waiting}, timeout=deadline - time.monotonic())  # the engine has begun
                if not waiting.done():
                    self._service.metrics.deadlines.inc()
                    raise deadline_exceeded(self._service.settings.deadline_s)
                return frame, request, picture, waiting.result()
        finally:
            picture.cancel()
            waiting.cancel()

    def _take(self) -> tuple[int, LiveRequest]:
        assert self._newest is not None
        taken, self._newest = self._newest, None
        self._arrived.clear()
        return taken

    async def _picture(self, request: LiveRequest) -> Picture:
        seed = secrets.randbits(32) if request.seed is None else request.seed
        if request.image is None:
            return Picture(request.prompt, seed, request.steps)
        strength = check_strength(request.strength, request.steps)
        first_step(request.steps, strength)
        bundle, limit = self._service.pipeline.bundle, self._service.settings.max_image_pixels
        data = decode_base64(request.image)
        image = await asyncio.to_thread(decode_image, data, bundle.height, bundle.width, limit)
        return Picture(request.prompt, seed, request.steps, image, strength)

    async def _send_frame(self, frame: int, request: LiveRequest, picture: Picture, drawn: Drawn) -> None:
        start = time.perf_counter()
        file = await asyncio.to_thread(encode, drawn.image, request.output_format)
        encode_ms = (time.perf_counter() - start) * 1e3
        head: dict[str, Any] = {
            "type": "frame",
            "frame": frame,
            "seed": drawn.seed,
            "output_format": request.output_format,
        }
        report = report_of(self._service, picture, [drawn]) | {"encode_ms": round(encode_ms, 3)}
        async with self._sending:
            await self._websocket.send_json(head | {"sdturbo": report})
            await self._websocket.send_bytes(file)
        self._service.metrics.encoding.labels(request.output_format).observe(encode_ms / 1e3)
        self._service.metrics.frames.labels("shown").inc()

    async def _send_error(self, frame: int, error: ApiError | SDTurboError) -> None:
        body = (from_engine(error) if isinstance(error, SDTurboError) else error).body()
        self._service.metrics.frames.labels("failed").inc()
        async with self._sending:
            await self._websocket.send_json({"type": "error", "frame": frame, **body})
