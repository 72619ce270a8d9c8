"""The server: what it answers, and all that it refuses."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from kin_cli.errors import InputError, UsageError
from kin_cli.view.http import Refusal, Reply, Request, WebServer
from tests.helpers.pages import serving


class Echo:
    """Tells what it was asked."""

    def answer(self, request: Request) -> Reply:
        if request.path == "fails":
            raise InputError("slide.tif: is damaged")
        if request.path == "breaks":
            raise ZeroDivisionError
        if request.path == "refused":
            raise Refusal(HTTPStatus.CONFLICT)
        if request.path == "json":
            return Reply(str(dict(request.json())).encode(), ".txt")
        return Reply(f"{request.method} {request.secret} {request.path}".encode(), ".txt")


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with serving(Echo(), "alpha", "beta") as running:
        yield running


def raw(server: WebServer, text: bytes) -> bytes:
    """What comes back to these bytes, until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(text)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def get(
    server: WebServer, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(
        method, path, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_each_secret_opens_the_door(server: WebServer) -> None:
    assert get(server, "/alpha/some/path?x=1") == (200, b"GET alpha some/path")
    assert get(server, "/beta/") == (200, b"GET beta ")
    assert get(server, "/beta/x", method="POST", body=b"{}") == (200, b"POST beta x")
    assert get(server, "/beta/x", Host=f"localhost:{server.port}")[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/alpha", "/ALPHA/", "/alph/", "/alphaa/", "/%61lpha/", "/etc/passwd", "/../alpha/", "*"]
)
def test_without_a_secret_there_is_nothing(server: WebServer, path: str) -> None:
    assert get(server, path)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "127.0.0.2:{port}", "localhost.evil:{port}", ""]
)
def test_other_hosts_are_refused(server: WebServer, host: str) -> None:
    assert get(server, "/alpha/", Host=host.format(port=server.port))[0] == 403


def test_no_host_and_two_hosts_are_refused(server: WebServer) -> None:
    ours = b"Host: 127.0.0.1:%d\r\n" % server.port
    assert b" 403 " in raw(server, b"GET /alpha/ HTTP/1.1\r\n\r\n").split(b"\r\n")[0]
    assert b" 403 " in raw(server, b"GET /alpha/ HTTP/1.1\r\n" + ours + ours + b"\r\n").split(b"\r\n")[0]
    assert b" 403 " in raw(server, b"GET http://evil/alpha/ HTTP/1.1\r\nHost: evil\r\n\r\n").split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"PUT /alpha/ HTTP/1.1\r\n{host}Connection: close\r\n\r\n", b" 501 "),
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n{host}\r\n", b" 414 "),
        (b"GET /alpha/ HTTP/1.1\r\n{host}" + b"X: y\r\n" * 200 + b"\r\n", b" 431 "),
        (b"POST /alpha/ HTTP/1.1\r\n{host}Content-Length: 99999999999999\r\n\r\n", b" 413 "),
        (b"POST /alpha/ HTTP/1.1\r\n{host}Content-Length: -1\r\n\r\n", b" 400 "),
        (b"POST /alpha/ HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b" 501 "),
        (b"POST /alpha/ HTTP/1.1\r\n{host}Sec-Fetch-Site: cross-site\r\nContent-Length: 0\r\n\r\n", b" 403 "),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
def test_hostile_requests_are_refused(server: WebServer, request_: bytes, status: bytes) -> None:
    host = b"Host: 127.0.0.1:%d\r\n" % server.port
    assert status in raw(server, request_.replace(b"{host}", host))[:400]
    assert get(server, "/alpha/still") == (200, b"GET alpha still")


def test_failures_are_told_and_end_nothing(server: WebServer) -> None:
    assert get(server, "/alpha/fails") == (500, b"slide.tif: is damaged")
    status, text = get(server, "/alpha/breaks")
    assert (status, b"ZeroDivisionError" in text) == (500, True)
    assert get(server, "/alpha/refused")[0] == 409
    for body in (b"", b"[1]", b"{", b"[" * 60000, b'"text"'):
        assert get(server, "/alpha/json", method="POST", body=body)[0] == 400


def test_headers_keep_other_sites_out(server: WebServer) -> None:
    answer = raw(server, b"HEAD /alpha/ HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % server.port)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"default-src 'none'" in head
    assert b"nosniff" in head
    assert b"no-store" in head
    assert body == b""


def test_silent_connections_keep_nobody_out(server: WebServer) -> None:
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(300)]
    held[100].sendall(b"GET /alpha/slow HTTP/1.1\r\nHost: 127")
    try:
        for number in range(20):
            assert get(server, f"/alpha/{number}") == (200, f"GET alpha {number}".encode())
        assert held[0].recv(100) == b""
        held[-1].sendall(b"GET /alpha/last HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % server.port)
        assert held[-1].recv(100).startswith(b"HTTP/1.1 200 ")
    finally:
        for connection in held:
            connection.close()


def test_more_than_can_be_answered_at_once_are_turned_away_and_room_comes_back() -> None:
    gate = threading.Event()

    class Waits:
        def answer(self, request: Request) -> Reply:
            gate.wait(30)
            return Reply(b"done", ".txt")

    with serving(Waits(), "alpha") as server:
        asked = b"GET /alpha/ HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % server.port
        held = []
        for _ in range(256):
            held.append(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            held[-1].sendall(asked)
        end = time.monotonic() + 30
        while server._answering < 256:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert b" 503 " in raw(server, asked)
        gate.set()
        for connection in held:
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
            connection.close()
        while get(server, "/alpha/")[0] != 200:
            assert time.monotonic() < end


def test_what_a_browser_may_add_changes_nothing(server: WebServer) -> None:
    ours = b"Host: 127.0.0.1:%d\r\nConnection: close\r\n" % server.port
    for more in (b"Range: bytes=0-3\r\n", b"If-None-Match: *\r\n", b"Content-Length: 5\r\n", b"Expect: x\r\n"):
        answer = raw(server, b"GET /alpha/p HTTP/1.1\r\n" + ours + more + b"\r\n12345")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\nGET alpha p")


def test_a_port_that_is_taken_is_told(server: WebServer) -> None:
    with pytest.raises(UsageError, match=f"{server.port}.*--port"):
        WebServer(Echo(), port=server.port, secrets=("x",))
