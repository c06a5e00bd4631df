"""What the HTTP service counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

PATHS = ('/labels', '/overlay', '/health', '/model', '/metrics')
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Requests by path and status, those that are open, and seconds of segmenting."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()  # its own: a process may hold several services
        self.requests = Counter(
            'mmseg_repvgg_requests', 'Requests', ('path', 'status'), registry=self.registry
        )
        self.open = Gauge('mmseg_repvgg_open_requests', 'Open requests', registry=self.registry)
        self.segmenting = Histogram(
            'mmseg_repvgg_seconds',
            'Seconds from a received image to its result, with waiting',
            buckets=SECONDS,
            registry=self.registry,
        )

    async def count(
        self, request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Count a request, also one that fails."""
        path = request.url.path if request.url.path in PATHS else 'other'
        status = 500
        try:
            with self.open.track_inprogress():
                response = await call_next(request)
            status = response.status_code
            return response
        finally:
            self.requests.labels(path, status).inc()

    def text(self) -> str:
        """All of it."""
        return generate_latest(self.registry).decode()
