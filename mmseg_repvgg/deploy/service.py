"""A small HTTP service: an image in, its label map or overlay out (``mmseg-repvgg serve``).

Needs what :class:`.segmenter.Segmenter` needs, FastAPI and prometheus_client, and neither PyTorch
(but for the torch runtime) nor an OpenMMLab package.
"""

from __future__ import annotations

import io
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import cv2
import numpy as np
from anyio.to_thread import run_sync
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.requests import ClientDisconnect

from mmseg_repvgg.checks import check_integer, is_positive
from mmseg_repvgg.deploy.images import decode_image
from mmseg_repvgg.deploy.received_images import check_pixels
from mmseg_repvgg.deploy.result_files import label_image
from mmseg_repvgg.deploy.segmenter import Segmenter
from mmseg_repvgg.deploy.service_metrics import Metrics

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a service accepts; more is answered with an error.

    Raises:
        ValueError: If a limit is not positive.
    """

    num_bytes: int = 20 * 2**20  # of an image file
    pixels: int = 25_000_000  # of an image
    at_once: int = 1  # images that are segmented at the same time
    waiting: int = 16  # images that wait for their turn; further ones are refused
    seconds: float = 30.0  # until an image has to be received

    def __post_init__(self) -> None:
        for name in ('num_bytes', 'pixels', 'at_once'):
            check_integer(name, getattr(self, name), 1)
        check_integer('waiting', self.waiting, 0)
        if not is_positive(self.seconds):
            raise ValueError(f'seconds={self.seconds!r} must be a finite number above 0')


def create_app(segmenter: Segmenter, name: str = 'model', limits: Limits | None = None) -> FastAPI:
    """Make the service, an ASGI application.

    ``POST /labels`` and ``POST /overlay`` take an image file as the body of the request and give a
    PNG of its size: class indices with a palette, or the colours over the image
    (``?opacity=0.5``). ``GET /health``, ``GET /model`` (the description) and ``GET /metrics``
    (Prometheus) take nothing. Errors are JSON, ``{"detail": reason}``.

    Args:
        segmenter: The model; its labels are exactly those that a call of it gives.
        name: Of the model, for ``/health``.
        limits: What is accepted.
    """
    app = FastAPI(title='mmseg_repvgg', docs_url=None, redoc_url=None, openapi_url=None)
    work = _Work(segmenter, limits or Limits())
    app.middleware('http')(work.metrics.count)

    @app.post('/labels')
    async def labels(request: Request) -> Response:
        return await work.answer(request, work.labels)

    @app.post('/overlay')
    async def overlay(request: Request, opacity: float = 0.5) -> Response:
        if not 0 <= opacity <= 1:
            raise HTTPException(422, f'opacity={opacity} must be from 0 to 1')
        return await work.answer(request, partial(work.overlay, opacity=opacity))

    @app.get('/health')
    async def health() -> dict[str, Any]:
        info = segmenter.info
        return dict(status='ok', model=name, model_sha256=info.model_sha256, format=info.format)

    @app.get('/model')
    async def model() -> Response:
        return Response(segmenter.info.to_json(), media_type='application/json')

    @app.get('/metrics')
    async def metrics() -> Response:
        return PlainTextResponse(work.metrics.text(), media_type=work.metrics.media_type)

    return app


class _Work:
    """Receives images and segments them in threads."""

    def __init__(self, segmenter: Segmenter, limits: Limits) -> None:
        self.segmenter, self.limits, self.metrics = segmenter, limits, Metrics()
        self.turns = anyio.CapacityLimiter(limits.at_once)

    async def answer(self, request: Request, draw: Callable[[bytes], bytes]) -> Response:
        """Answer a request with a PNG."""
        self._check_turn()  # before the image is received, and again when others came first
        content = await self._receive(request)
        self._check_turn()
        try:
            with self.metrics.segmenting.time():
                png = await run_sync(draw, content, limiter=self.turns)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        except (RuntimeError, MemoryError, cv2.error) as error:
            LOG.exception('an image of %d bytes could not be segmented', len(content))
            raise HTTPException(500, 'the image could not be segmented; see the log') from error
        return Response(png, media_type='image/png')

    def _check_turn(self) -> None:
        """Refuse a request if too many wait."""
        turns, waiting = self.turns.statistics(), self.limits.waiting
        if turns.borrowed_tokens >= turns.total_tokens and turns.tasks_waiting >= waiting:
            raise HTTPException(503, f'{waiting} images wait already', {'Retry-After': '1'})

    async def _receive(self, request: Request) -> bytes:
        """The body of a request, read no further than the limit."""
        most = self.limits.num_bytes
        too_large = HTTPException(413, f'the body has more than {most} bytes, the limit')
        if int(request.headers.get('content-length', 0)) > most:
            raise too_large
        content = bytearray()
        try:
            with anyio.fail_after(self.limits.seconds):
                async for block in request.stream():
                    content += block
                    if len(content) > most:
                        raise too_large
        except TimeoutError as error:
            text = f'the body was not received in {self.limits.seconds:g} seconds'
            raise HTTPException(408, text) from error
        except ClientDisconnect as error:
            raise HTTPException(400, 'the connection was closed') from error
        if not content:
            raise HTTPException(400, 'the body is empty; send an image file: curl --data-binary @')
        return bytes(content)

    def labels(self, content: bytes) -> bytes:
        """Label map of an image file, as a PNG."""
        info = self.segmenter.info
        return _png(label_image(self.segmenter(self._decode(content)), 'palette', info))

    def overlay(self, content: bytes, opacity: float) -> bytes:
        """An image file under the colours of its classes, as a PNG."""
        image = self._decode(content)
        painted = self.segmenter.overlay(image, self.segmenter(image), opacity)
        return cv2.imencode('.png', painted)[1].tobytes()

    def _decode(self, content: bytes) -> np.ndarray:
        check_pixels(content, self.limits.pixels)
        pixels = np.frombuffer(content, np.uint8)
        return decode_image(pixels, self.segmenter.info.color_type, 'the body')


def _png(image: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, 'PNG')
    return content.getvalue()


def run(app: FastAPI, host: str, port: int, most: int = 100) -> None:
    """Serve an application until the process is interrupted (SIGINT, SIGTERM).

    Args:
        app: As :func:`create_app` makes it.
        host: Name or address to listen at.
        port: 0 is any free one, which is printed.
        most: Open connections; more are answered with 503.

    Raises:
        OSError: If nothing can listen at this address.
    """
    import uvicorn

    with socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(128)  # from now on clients wait instead of being refused
        except (OSError, OverflowError) as error:
            raise OSError(f'cannot listen at {host}, port {port}: {error}') from error
        print(f'serving at http://{host}:{listening.getsockname()[1]}', flush=True)
        config = uvicorn.Config(app, log_level='warning', access_log=False, limit_concurrency=most)
        with suppress(KeyboardInterrupt):  # uvicorn raises it again, after all was answered
            uvicorn.Server(config).run(sockets=[listening])
