"""Serve the folder of a web page on this machine, with the standard library."""

from __future__ import annotations

import socket
import webbrowser
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mmseg_repvgg.deploy.web import read_names

HEADERS = {
    # the two that browsers ask for before they give a page shared memory, and so threads
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Embedder-Policy': 'require-corp',
    # workers do not take over that of index.html; the runtime for WebGPU makes functions of text
    'Content-Security-Policy': (
        "default-src 'none'; script-src 'self' 'unsafe-eval'; worker-src 'self'; "
        "connect-src 'self'; img-src 'self' data:; style-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    ),
    'X-Content-Type-Options': 'nosniff',
    'Cache-Control': 'no-cache',  # asks each time: the folder may have changed
}
LOOPBACK = ('127.0.0.1', 'localhost', '::1')


class PageHandler(SimpleHTTPRequestHandler):
    """Files of a folder, without listings."""

    # whatever the tables of the system say
    extensions_map = {
        **SimpleHTTPRequestHandler.extensions_map,
        '.css': 'text/css',
        '.html': 'text/html',
        '.js': 'text/javascript',
        '.json': 'application/json',
        '.mjs': 'text/javascript',
        '.onnx': 'application/octet-stream',
        '.wasm': 'application/wasm',
    }

    def end_headers(self) -> None:
        """Add the headers of the page."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        """Answer 404 instead of a listing."""
        self.send_error(404, 'File not found')

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # do not wait for open connections

    def __init__(self, host: str, port: int, folder: Path) -> None:
        self.address_family = socket.AF_INET6 if ':' in host else socket.AF_INET
        super().__init__((host, port), partial(PageHandler, directory=str(folder)))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that close a connection."""


def page_server(
    folder: str | Path, host: str = '127.0.0.1', port: int = 8000
) -> ThreadingHTTPServer:
    """A server that listens already; it answers in ``serve_forever()``.

    Args:
        folder: That of the page.
        host: Name or address to listen at.
        port: 0 is any free one.

    Raises:
        FileNotFoundError: If the folder has no page.
        OSError: If nothing can listen at this address.
    """
    if not read_names(folder) or not (Path(folder) / 'index.html').is_file():
        raise FileNotFoundError(
            f'{folder} has no page with a model: mmseg-repvgg export CONFIG CHECKPOINT OUT.onnx '
            f'--web {folder} writes one'
        )
    try:
        return _Server(host, port, Path(folder))
    except (OSError, OverflowError) as error:
        raise OSError(f'cannot listen at {host}, port {port}: {error}') from error


def serve(folder: str | Path, host: str, port: int, browser: bool = True) -> None:
    """Serve a page until the process is interrupted, and open it in a browser.

    Args:
        folder: That of the page.
        host: Name or address to listen at.
        port: 0 is any free one, which is printed.
        browser: Whether to open it.

    Raises:
        FileNotFoundError: If the folder has no page.
        OSError: If nothing can listen at this address.
    """
    with page_server(folder, host, port) as server:
        name = f'[{host}]' if ':' in host else host
        address = f'http://{name}:{server.server_address[1]}'
        print(f'serving {folder} at {address}', flush=True)
        if host not in LOOPBACK:
            print('note: threads and the camera need https, or the address localhost', flush=True)
        if browser:
            webbrowser.open(address)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
