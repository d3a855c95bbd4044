"""A headless Chromium that looks at the page, and all that it asked for and said."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

# WebGL 2 without a graphics card.
_DRAWING = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
_KNOWN = ("chromium", "chromium-browser", "google-chrome")
SLOW_MS = 120_000
"""Without a graphics card, and beside other tests, a view may take long."""


def chromium() -> str:
    """Where Chromium is; skips where it is not."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _KNOWN)), None)
    if not found:
        pytest.skip("no Chromium here; install it, or name it in $CHROMIUM")
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium without a window."""
    expect.set_options(timeout=SLOW_MS)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", *_DRAWING])
        yield opened
        opened.close()


@dataclass
class Watched:
    """A page, and what it did."""

    page: Page
    address: str
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def must_be_clean(self, *, but: str = "\0") -> None:
        """Nothing was asked of another address, and nothing was complained of, `but` lines that hold that."""
        inside = (self.address, "data:", f"blob:{self.address}")
        outside = [url for url in self.asked if not url.startswith(inside)]
        complaints = [line for line in self.complaints if but not in line]
        assert not outside, outside
        assert not complaints, complaints

    def give(self, *files: Path, model: str) -> None:
        """Chooses a model and files, as a person does by the buttons."""
        self.page.select_option("#model", model)
        self.page.set_input_files("#files", list(files))

    def drop(self, *paths: Path) -> None:
        """Drops files and folders upon the page, as a person does by the mouse."""
        devtools = self.page.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 200, "data": data})

    def js(self, expression: str, argument: Any = None) -> Any:
        """What an expression is on the page."""
        return self.page.evaluate(expression, argument)

    @property
    def job(self) -> str:
        """The job that is shown, by the page's address."""
        return str(self.js("location.hash")).removeprefix("#")

    def drawn(self) -> None:
        """Waits until the scan and the answer are shown and drawn."""
        self.until("Boolean(window.voxray.shown && window.voxray.list)")
        self.until("!document.querySelector('#views-note').textContent")
        self.js("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def until(self, expression: str) -> None:
        """Waits until it is true; Playwright's own waiting evaluates strings in the page, which the page forbids."""
        end = time.monotonic() + SLOW_MS / 1000
        while not self.js(expression):
            assert time.monotonic() < end, f"not so after {SLOW_MS / 1000:.0f} s: {expression}"
            self.page.wait_for_timeout(100)


@contextmanager
def watched(
    opened: Browser, address: str, *, width: int = 1400, height: int = 900, path: str = "/"
) -> Iterator[Watched]:
    """A page of the service in a fresh profile."""
    phone = width < 700
    context = opened.new_context(viewport={"width": width, "height": height}, has_touch=phone, is_mobile=phone)
    context.set_default_timeout(SLOW_MS)
    found = Watched(context.new_page(), address)

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            found.complaints.append(f"{message.type}: {message.text} {message.location.get('url', '')}")

    found.page.on("console", said)
    found.page.on("pageerror", lambda error: found.complaints.append(f"thrown: {error}"))
    found.page.on("request", lambda request: found.asked.append(request.url))
    found.page.goto(address + path)
    yield found
    context.close()
