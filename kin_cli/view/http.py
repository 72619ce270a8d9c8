"""A web server for this machine: many requests at once, a secret in every address, and nothing of the file system.

An *app* maps (method, path below the secret, body) to a ``Reply``. No path is ever looked up on the disk. Requests are
refused that name another host, as a page of another site would by DNS rebinding, or that lack the secret.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from socket import SHUT_RDWR, socket
from typing import Any, Protocol
from urllib.parse import unquote

from kin_cli.errors import KinError, Stopped, UsageError, explained
from kin_cli.signals import forget_stop

_CONNECTIONS = 256
_IDLE_SECONDS = 30
_ROOM_SECONDS = 0.5  # that a closed connection may take to end
_BODY_BYTES = 1 << 16
_BACKLOG = 256
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".png": "image/png",
}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
OPENSEADRAGON = "openseadragon.min.js"


@dataclass(frozen=True)
class Request:
    """A request that passed the server's checks.

    Attributes:
        method: "GET" or "POST"; HEAD arrives as GET.
        secret: the first part of the path, one of the server's.
        path: what follows the secret, without the slash between them, decoded.
        body: what a POST carries, at most 64 KiB.
    """

    method: str
    secret: str
    path: str
    body: bytes = b""

    def json(self) -> Mapping[str, Any]:
        """The body as a JSON object; ``Refusal`` 400 if it is none."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            raise Refusal(HTTPStatus.BAD_REQUEST) from None
        if not isinstance(value, dict):
            raise Refusal(HTTPStatus.BAD_REQUEST)
        return value


@dataclass(frozen=True)
class Reply:
    """What is sent back; ``kind`` is the ending of such a file, ``keep`` how many seconds a browser may keep it."""

    body: bytes
    kind: str = ".html"
    status: HTTPStatus = HTTPStatus.OK
    keep: int = 0


class Refusal(Exception):
    """A request that is not answered, with the status that says why."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


class App(Protocol):
    """What a server serves."""

    def answer(self, request: Request) -> Reply:
        """The reply to a request; thread-safe. Raises ``Refusal``, or a ``KinError`` that is told as status 500."""


@dataclass(frozen=True)
class Door:
    """Who may come in: the secrets that begin an address, and the hosts that a request may name."""

    secrets: tuple[str, ...]
    hosts: frozenset[str] = field(default_factory=frozenset)

    def admits(self, secret: str) -> bool:
        """Whether a secret is one of ours, compared in constant time."""
        given = secret.encode("utf-8", "replace")
        return sum(hmac.compare_digest(given, known.encode()) for known in self.secrets) > 0


class WebServer(ThreadingHTTPServer):
    """Serves an app at ``http://HOST:PORT/SECRET/``; one thread per connection, at most 256 connections.

    If there are more, the one is closed that has been silent for longest, so that silent ones keep nobody out.

    Memory bound: that of the app, and 64 KiB per connection.
    """

    daemon_threads = True
    request_queue_size = _BACKLOG
    allow_reuse_address = True

    def __init__(self, app: App, *, host: str = "127.0.0.1", port: int = 0, secrets: tuple[str, ...]) -> None:
        self.app = app
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        self._quiet, self._answering, self._ended = threading.Condition(), 0, False
        self._silent: dict[socket, None] = {}  # connections without a whole request, the longest silent first
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"{host}:{port}: cannot be listened at: {reason}", "choose another --port") from None
        self.port = int(self.server_address[1])
        names = ("127.0.0.1", "localhost") if host in ("127.0.0.1", "localhost") else (host,)
        self.door = Door(secrets, frozenset(f"{name}:{self.port}" for name in names))

    def address(self, secret: str) -> str:
        """Where the app is found with a secret."""
        return f"http://{self.server_address[0]!s}:{self.port}/{secret}/"

    def welcome(self, hosts: Iterable[str]) -> None:
        """Also answer requests that name these hosts (with the port, if it is not the scheme's own)."""
        self.door = Door(self.door.secrets, self.door.hosts | {host.lower() for host in hosts})

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request while it is answered. Raises ``Refusal`` once the server has ended."""
        with self._quiet:
            if self._ended:
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE)
            self._answering += 1
        try:
            yield
        finally:
            with self._quiet:
                self._answering -= 1
                self._quiet.notify_all()

    @contextmanager
    def silence(self, connection: socket) -> Iterator[Callable[[], None]]:
        """Count a connection as silent until the function is called, or the block ends."""
        with self._quiet:
            self._silent[connection] = None

        def ended() -> None:
            with self._quiet:
                self._silent.pop(connection, None)

        try:
            yield ended
        finally:
            ended()

    def _close_most_silent(self) -> None:
        with self._quiet:
            connection = next(iter(self._silent), None)
            if connection is not None:
                del self._silent[connection]
                with suppress(OSError):
                    connection.shutdown(SHUT_RDWR)  # its thread wakes up and closes it

    def server_close(self) -> None:
        """Stop listening, and wait for the requests that are being answered: they may still read a slide."""
        super().server_close()
        with self._quiet:
            self._ended = True
            self._quiet.wait_for(lambda: self._answering == 0)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand a connection to a thread of its own, or close it if there are too many that are not silent."""
        if not self._free.acquire(blocking=False):
            self._close_most_silent()
            if not self._free.acquire(timeout=_ROOM_SECONDS):
                with suppress(OSError):
                    request.sendall(
                        b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                    )
                self.shutdown_request(request)
                return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, and make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        """Ignore connections that break: browsers drop those of pictures that left the screen."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "kin"
    sys_version = ""
    timeout = _IDLE_SECONDS
    server: WebServer
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def handle_one_request(self) -> None:
        """Read a request and answer it; until it is there, the connection is silent."""
        with self.server.silence(self.connection) as self._heard:
            super().handle_one_request()

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Requests are not logged."""

    def _serve(self, method: str) -> None:
        try:
            request = self._checked(method)
            self._heard()
            with self.server.answering():
                reply = self.server.app.answer(request)
        except Refusal as refusal:
            self.close_connection = True
            reply = Reply(refusal.status.phrase.encode(), ".txt", refusal.status)
        except KinError as error:
            reply = Reply(str(error).encode("utf-8", "replace"), ".txt", HTTPStatus.INTERNAL_SERVER_ERROR)
        except Exception as error:  # a request must not end the server
            reply = Reply(str(explained(error)).encode("utf-8", "replace"), ".txt", HTTPStatus.INTERNAL_SERVER_ERROR)
        self._send(reply)

    def _checked(self, method: str) -> Request:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].lower() not in self.server.door.hosts:
            raise Refusal(HTTPStatus.FORBIDDEN)
        if self.headers.get("Transfer-Encoding") is not None:
            raise Refusal(HTTPStatus.NOT_IMPLEMENTED)
        secret, slash, path = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not slash or not self.server.door.admits(secret):
            raise Refusal(HTTPStatus.NOT_FOUND)
        body = self._body()
        site = self.headers.get("Sec-Fetch-Site", "same-origin")
        if method == "POST" and site not in ("same-origin", "none"):
            raise Refusal(HTTPStatus.FORBIDDEN)
        return Request(method, secret, unquote(path), body)

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdecimal()):
            raise Refusal(HTTPStatus.BAD_REQUEST)
        if len(length) > 9 or int(length) > _BODY_BYTES:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return self.rfile.read(int(length)) if int(length) else b""

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", _TYPES.get(reply.kind, "text/plain; charset=utf-8"))
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("Cache-Control", f"private, max-age={reply.keep}" if reply.keep else "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)


def new_secret() -> str:
    """A secret for an address: 128 random bits."""
    return secrets.token_urlsafe(16)


def page_file(package: str, name: str) -> bytes:
    """A file of a page that ships with kin; ``package`` is a room such as "view"."""
    return resources.files(f"kin_cli.{package}").joinpath(f"page/{name}").read_bytes()


def openseadragon() -> bytes:
    """OpenSeadragon's JavaScript. Raises ``KinError`` if this kin was built without it."""
    try:
        return resources.files("kin_cli.view").joinpath(f"openseadragon/{OPENSEADRAGON}").read_bytes()
    except FileNotFoundError:
        raise KinError(
            "the viewer OpenSeadragon is missing: it could not be fetched from npm when kin was installed",
            "install kin again where npm's registry can be reached, or with KIN_OPENSEADRAGON=openseadragon-6.1.1.tgz",
        ) from None


def served(server: WebServer) -> None:
    """Answer requests until Ctrl-C or SIGTERM, which are the ordinary end of a server; then close it."""
    try:
        server.serve_forever(poll_interval=0.2)
    except Stopped:
        forget_stop()
    finally:
        server.server_close()
