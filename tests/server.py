"""A web server on this machine for tests: pages that resume, break off, lie, move or fail as told."""

import re
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What the server answers at an address.

    ``statuses`` are answered first, one request each; ``cuts`` are the bytes of body after which the next answers break off;
    then all is well. ``length`` is announced instead of the true one, or nothing if it is "none". ``stall`` is waited for
    before the body. A ``span`` replaces the Content-Range of partial answers.
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
    """The pages by path, and the requests that came: (path, Range, If-Range, status)."""

    def __init__(self, port, scheme="http"):
        self.pages = {}
        self.requests = []
        self.root = f"{scheme}://127.0.0.1:{port}"

    def put(self, path, body=b"", **behaviour):
        """Put a page and return its address."""
        self.pages[path] = Page(body, **behaviour)
        return self.root + path

    @property
    def ranges(self):
        """The Range of every request."""
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
        """Return the status of the answer and the byte it starts at."""
        if page is None:
            return 404, 0
        if page.statuses:
            return page.statuses.pop(0), 0
        if page.redirect:
            return 302, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        condition = self.headers["If-Range"]
        if not page.ranges or not wanted or (condition and condition not in (page.etag, page.modified)):
            return 200, 0
        start = int(wanted[1])
        return (206, start) if start < len(page.body) else (416, 0)

    def _send(self, page, status, start):
        """Send headers and body."""
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
            pass  # the other end had enough


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        pass


@contextmanager
def serving(context=None):
    """Serve a `Site` on 127.0.0.1, over TLS if there is a context."""
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
    """Return a port of this machine that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
