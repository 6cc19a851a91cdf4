"""WS /v1/live: a live connection. Its newest request wins.

The client sends JSON messages (`LiveRequest`), and its n-th message is frame n. The answer to a frame is a text message
{"type": "frame", "frame": n, …} and then a binary message, the picture. An error is {"type": "error", "frame": n, "error": …}.
A newer request replaces an older one until the engine begins with it. The older one then gets no answer.
If the client asks for that, a camera's frame that shows nothing new is answered by {"type": "skipped", "frame": n}.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from sdturbo import SDTurboError
from sdturbo.image import SimilarFrames
from sdturbo.request import DEFAULT_STEPS, check_strength, first_step, random_seed
from sdturbo_serve.access import SUBPROTOCOL, admit
from sdturbo_serve.errors import ApiError, as_api_error, mask_without_image, refusals_name
from sdturbo_serve.picture import DrawnPicture, QueuedPicture
from sdturbo_serve.schemas import LiveRequest
from sdturbo_serve.service import Service, service_of
from sdturbo_serve.strict import parse_json
from sdturbo_serve.uploads import decode_base64

DEFAULT_BLEND = 0.5
MESSAGES_PER_SECOND = 200  # more than typing or drawing makes
POLICY_VIOLATION = 1008

router = APIRouter()


@router.websocket("/v1/live")
async def live(websocket: WebSocket) -> None:
    service = service_of(websocket)
    try:
        admit(websocket)
        if service.open_connections >= service.settings.max_live:
            text = f"{service.open_connections} live connections are open. Try again later."
            raise ApiError(429, text, code="too_many_streams")
    except ApiError as error:
        await websocket.send_denial_response(error.response())
        return
    offered = [name.strip() for name in websocket.headers.get("sec-websocket-protocol", "").split(",")]
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    with service.live_connection():
        await LiveConnection(websocket, service).run()


@router.websocket("/{path:path}")
async def elsewhere(websocket: WebSocket) -> None:
    error = ApiError(404, "This path has no WebSocket. Expected /v1/live.")
    await websocket.send_denial_response(error.response())


@dataclass(frozen=True, slots=True)
class _Frame:
    """A client's message by its number, and its picture, ready for the queue. end: its deadline, as `end_of_request` says."""

    number: int
    request: LiveRequest
    picture: QueuedPicture
    end: float


class LiveConnection:
    """One client. A reader keeps the newest request, and a drawer has at most one picture in the queue.

    A further task prepares the next frame meanwhile, because the operator's filter may take long. A finished picture does not
    wait for it.
    """

    def __init__(self, websocket: WebSocket, service: Service) -> None:
        self._websocket = websocket
        self._service = service
        self._newest: tuple[int, LiveRequest] | None = None
        self._prepared: _Frame | None = None  # it came too late for the queue, and is next unless a newer one comes
        self._arrived = asyncio.Event()  # set while there is a newest request or a prepared frame
        self._preparing: asyncio.Task[_Frame | None] | None = None
        self._sending = asyncio.Lock()
        self._settings: dict[str, object] = {}  # of the last frame, without its image
        self._similar = SimilarFrames()

    async def run(self) -> None:
        """Serve the client until it goes away or sends too much."""
        try:
            async with asyncio.TaskGroup() as tasks:
                drawer = tasks.create_task(self._draw_newest(tasks))
                await self._read()
                drawer.cancel()
                if self._preparing is not None:
                    self._preparing.cancel()
        except* WebSocketDisconnect:  # while something was sent
            pass

    async def _read(self) -> None:
        number = second = count = 0
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            now = int(time.monotonic())
            second, count = (second, count + 1) if now == second else (now, 1)
            if count > MESSAGES_PER_SECOND:
                await self._websocket.close(POLICY_VIOLATION, f"more than {MESSAGES_PER_SECOND} messages per second")
                return
            number += 1
            try:
                request = LiveRequest.model_validate(parse_json(message.get("text") or ""))
            except (ApiError, ValidationError) as error:
                await self._send_error(number, error)
            else:
                self._keep(number, request)

    def _keep(self, number: int, request: LiveRequest) -> None:
        if self._prepared is not None:
            self._prepared = None
            self._similar.forget()  # it was not drawn
            self._count("superseded")
        elif self._newest is not None:
            self._count("superseded")
        self._newest = (number, request)
        self._arrived.set()

    def _put_back(self, frame: _Frame) -> None:
        if self._newest is None:
            self._prepared = frame
            self._arrived.set()
        else:
            self._similar.forget()  # it was not drawn
            self._count("superseded")

    def _count(self, outcome: str) -> None:
        self._service.metrics.frames.labels(outcome).inc()

    async def _draw_newest(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            if self._preparing is None:
                await self._arrived.wait()
                self._preparing = tasks.create_task(self._next_frame(placed=False))
            frame = await self._preparing
            self._preparing = None
            if frame is not None:
                await self._draw(frame, tasks)

    async def _next_frame(self, *, placed: bool) -> _Frame | None:
        """The newest request with its picture. If none is to be drawn, the client gets the reason, and this returns None.

        placed: it is to take the place of a frame in the queue.
        """
        self._arrived.clear()
        end = self._service.end_of_request()
        if self._prepared is not None:
            frame, self._prepared = self._prepared, None
            frame.picture.arrived = time.perf_counter()  # the wait in the queue begins now
            return replace(frame, end=end)
        assert self._newest is not None
        (number, request), self._newest = self._newest, None
        try:
            frame = _Frame(number, request, await self._picture(request), end)
            await self._service.pass_prompts([frame.picture], frame.end, placed=placed)
        except (ApiError, SDTurboError) as error:
            await self._send_error(number, error)
            return None
        if self._is_similar(frame):
            self._count("skipped")
            async with self._sending:
                await self._websocket.send_json({"type": "skipped", "frame": number})
            return None
        return frame

    def _is_similar(self, frame: _Frame) -> bool:
        """Whether the frame may be skipped: it shows what the last one showed, and asks for the same."""
        image, threshold = frame.picture.image, frame.request.skip_similar
        settings = frame.request.model_dump(exclude={"image"})
        if image is None or threshold is None:
            return False
        if settings != self._settings:
            self._settings, self._similar = settings, SimilarFrames(threshold)
        return not self._similar.is_to_be_drawn(image)

    async def _picture(self, request: LiveRequest) -> QueuedPicture:
        seed = random_seed() if request.seed is None else request.seed
        size = self._service.size_of(request.size)
        steps = request.steps or DEFAULT_STEPS
        prompt, second_prompt, blend = _prompts(request)
        if request.image is None:
            if request.mask is not None:
                raise mask_without_image()
            return QueuedPicture(prompt, seed, steps, size=size, second_prompt=second_prompt, blend=blend)
        with refusals_name("image"):
            image_file = decode_base64(request.image)
        with refusals_name("mask"):
            mask_file = None if request.mask is None else decode_base64(request.mask)
        image, mask = await self._service.start_image(image_file, mask_file, size)
        with refusals_name("strength"):
            strength = check_strength(request.strength, steps, masked=mask is not None)
            first_step(steps, strength)
        return QueuedPicture(prompt, seed, steps, image, strength, mask, size, second_prompt=second_prompt, blend=blend)

    async def _draw(self, frame: _Frame, tasks: asyncio.TaskGroup) -> None:
        """Queue a frame, wait for its picture and send it. Newer frames take its place until the engine begins with it."""
        end = frame.end
        drawing: asyncio.Future[DrawnPicture] = asyncio.wrap_future(frame.picture.drawn)
        try:
            self._service.submit([frame.picture])
            while (newer := await self._newer(drawing, end, tasks)) is not None:
                if not self._service.worker.swap(frame.picture, newer.picture):  # the engine has begun
                    self._put_back(newer)
                    await asyncio.wait({drawing}, timeout=end - time.monotonic())
                    break
                self._count("superseded")
                drawing.cancel()
                frame = newer
                drawing = asyncio.wrap_future(frame.picture.drawn)
            if not drawing.done():
                raise self._service.late()
            await self._send_frame(frame, drawing.result(), end)
        except (ApiError, SDTurboError) as error:
            self._similar.forget()  # the client did not get the picture
            await self._send_error(frame.number, error)
        finally:
            frame.picture.drawn.cancel()
            drawing.cancel()

    async def _newer(
        self, drawing: asyncio.Future[DrawnPicture], end: float, tasks: asyncio.TaskGroup
    ) -> _Frame | None:
        """The next frame once it is prepared. None if the picture is there before, or the end."""
        while True:
            event: asyncio.Task[Any] = self._preparing or asyncio.create_task(self._arrived.wait())
            try:
                await asyncio.wait({drawing, event}, timeout=end - time.monotonic(), return_when="FIRST_COMPLETED")
            finally:
                if event is not self._preparing:
                    event.cancel()
            if drawing.done():
                return None
            if self._preparing is None and self._arrived.is_set():
                self._preparing = tasks.create_task(self._next_frame(placed=True))
            elif self._preparing is not None and self._preparing.done():
                frame, self._preparing = self._preparing.result(), None
                if frame is not None:
                    return frame
            else:
                return None

    async def _send_frame(self, frame: _Frame, drawn: DrawnPicture, end: float) -> None:
        output_format = frame.request.output_format or "jpeg"
        (file,), report = await self._service.encode([drawn], output_format, end)
        head = {"type": "frame", "frame": frame.number, "seed": drawn.seed, "output_format": output_format}
        async with self._sending:
            await self._websocket.send_json(head | {"sdturbo": report})
            await self._websocket.send_bytes(file)
        self._count("shown")

    async def _send_error(self, number: int, error: ApiError | SDTurboError | ValidationError) -> None:
        self._count("failed")
        async with self._sending:
            await self._websocket.send_json({"type": "error", "frame": number, **as_api_error(error).body()})


def _prompts(request: LiveRequest) -> tuple[str, str | None, float]:
    """(prompt, second prompt, blend) of a request's picture. At either end of a blend there is only one prompt.

    Raises ApiError for a blend without a second prompt.
    """
    if request.second_prompt is None:
        if request.blend is not None:
            text = (
                "Got a blend without a second prompt. A blend is a place between two prompts. Send second_prompt too."
            )
            raise ApiError(400, text, param="blend", code="invalid_value")
        return request.prompt, None, 0.0
    blend = DEFAULT_BLEND if request.blend is None else request.blend
    if blend in (0, 1):  # the plain picture, on every backend and with its prompt in the file
        return (request.second_prompt if blend else request.prompt), None, 0.0
    return request.prompt, request.second_prompt, blend
