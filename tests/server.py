"""A local web server for tests, with configurable failures."""

import re
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """The response of the server at one path.

    Attributes:
        body: The complete body.
        ranges: Whether range requests are supported.
        etag: ETag header.
        modified: Last-Modified header.
        statuses: Statuses of the first responses.
        cuts: Numbers of bytes after which the next responses are interrupted.
        redirect: Location to redirect to.
        length: Content-Length instead of the actual one; no header if it is "none".
        stall: Event to wait for after the body.
        chunked: Whether to use chunked transfer encoding.
        span: Content-Range of partial responses instead of the actual one.
    """

    body: bytes = b""
    ranges: bool = True
    etag: str | None = '"one"'
    modified: str | None = None
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    redirect: str | None = None
    length: int | str | None = None
    stall: threading.Event | None = None
    chunked: bool = False
    span: str | None = None


class Site:
    """The pages by path, and the received requests: (path, Range, If-Range, status)."""

    def __init__(self, port, scheme="http"):
        self.pages = {}
        self.requests = []
        self.root = f"{scheme}://127.0.0.1:{port}"

    def put(self, path, body=b"", **behaviour):
        """Add a page and return its URL."""
        self.pages[path] = Page(body, **behaviour)
        return self.root + path

    @property
    def ranges(self):
        """The Range headers of all requests."""
        return [request[1] for request in self.requests]


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        site = self.server.site
        page = site.pages.get(self.path)
        status, start = self._status(page)
        site.requests.append((self.path, self.headers["Range"], self.headers["If-Range"], status))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", page.redirect)
        if status in (200, 206):
            self._send(page, status, start)
        else:
            if status == 416:
                self.send_header("Content-Range", f"bytes */{len(page.body)}")
            self.end_headers()

    def _status(self, page):
        """Return the status of a response and its first byte."""
        if page is None:
            return 404, 0
        if page.statuses:
            return page.statuses.pop(0), 0
        if page.redirect:
            return 302, 0
        byte_range = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        condition = self.headers["If-Range"]
        if not page.ranges or not byte_range or (condition and condition not in (page.etag, page.modified)):
            return 200, 0
        start = int(byte_range[1])
        return (206, start) if start < len(page.body) else (416, 0)

    def _send(self, page, status, start):
        """Send the headers and the body of a response."""
        body = page.body[start:]
        if status == 206:
            self.send_header("Content-Range", page.span or f"bytes {start}-{len(page.body) - 1}/{len(page.body)}")
        for name, value in (("ETag", page.etag), ("Last-Modified", page.modified)):
            if value:
                self.send_header(name, value)
        if page.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif page.length != "none":
            self.send_header("Content-Length", str(len(body) if page.length is None else page.length))
        self.end_headers()
        cut = page.cuts.pop(0) if page.cuts else None
        sent = body[:cut]
        if page.chunked:
            sent = b"%x\r\n%b\r\n" % (len(sent), sent) + (b"" if cut is not None else b"0\r\n\r\n")
        try:
            self.wfile.write(sent)
            self.wfile.flush()
            if page.stall is not None:
                page.stall.wait(10)
        except OSError:
            pass  # the client closed the connection


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        pass


@contextmanager
def serving(context=None):
    """Serve a `Site` on 127.0.0.1, with TLS if a context is passed."""
    server = _Server(("127.0.0.1", 0), _Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.site = Site(server.server_address[1], "https" if context else "http")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def unused_port():
    """Return a free local port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
