"""Pages in a browser: what they ask for and complain of, and servers in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from kin_cli.errors import KinError
from kin_cli.view.http import App, WebServer, openseadragon


@dataclass
class Opened:
    """A page with the addresses that it asked for, and the errors that it met."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def until(self, expression: str, *, seconds: float = 60) -> None:
        """Wait until JavaScript is true; the page's policy allows playwright's own waiting no evaluation."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            if time.monotonic() > end:
                pytest.fail(f"never true: {expression}; complaints: {self.complaints}")
            self.page.wait_for_timeout(20)


@contextmanager
def opened_page(
    browser: Any, address: str, *, width: int = 1200, height: int = 800, **options: Any
) -> Iterator[Opened]:
    """A new window at an address; what it keeps is gone when it is closed."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    found = Opened(context.new_page())
    watch(found)
    found.page.goto(address)
    yield found
    context.close()


def watch(opened: Opened) -> None:
    """Note requests and complaints of a page."""

    def complain(message: Any) -> None:
        if message.type == "error":
            opened.complaints.append(message.text)

    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.on("console", complain)
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))


@contextmanager
def serving(app: App, *secrets: str) -> Iterator[WebServer]:
    """A server of an app in a thread of this process."""
    server = WebServer(app, secrets=secrets or ("secret",))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def need_viewer() -> None:
    """Skip a test where this kin was installed without OpenSeadragon."""
    try:
        openseadragon()
    except KinError as error:
        pytest.skip(str(error))
