"""A real headless Chromium, spoken to over its DevTools protocol: what a page says, asks for, draws and measures.

with chromium(folder) as browser:
    page = browser.open(file.as_uri(), width=375)
    assert page.said == [] and page.requests == [file.as_uri()]
    page.screenshot(folder / "phone.png")
"""

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

from websockets.sync.client import ClientConnection, connect

from support.command import until

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--disable-dev-shm-usage", "--disable-extensions", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
WAIT_SECONDS = 60
LONG = 50.0
"""Milliseconds from which on browsers call a task long."""
MAX_PIXELS = 16_000
"""Of a screenshot's height: what Chromium can draw in one."""


def why_not() -> str:
    """Why there is no browser here; empty when there is one."""
    return "" if _binary() else "Chromium is not installed (Debian's package chromium)"


@contextmanager
def chromium(folder: Path) -> "Iterator[Browser]":
    """Start one with an empty profile in `folder`; it ends with the block."""
    profile = folder / "chromium-profile"
    binary = _binary()
    assert binary, why_not()
    process = subprocess.Popen(
        [binary, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        file = profile / "DevToolsActivePort"
        until(lambda: file.exists() and len(file.read_text().splitlines()) > 1, "Chromium to listen", WAIT_SECONDS)
        port, path = file.read_text().splitlines()[:2]
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None, ping_interval=None) as socket:
            yield Browser(socket)
    finally:
        process.kill()
        process.wait()


class Task(NamedTuple):
    """What a page did without a pause, in milliseconds."""

    wall: float
    processor: float
    """Of it the page's own; the rest it waited, for others to leave it a processor."""
    most: str = ""
    """What in it took longest, where it is long."""


class Browser:
    """One browser; its pages share the connection, so use one at a time."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, count(1)
        self._pages: dict[str, Page] = {}

    def open(
        self, url: str, *, width: int = 1280, height: int = 900, scheme: Literal["light", "dark"] = "light"
    ) -> "Page":
        """A new page of this size, loaded, fonts and all."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        page.media(scheme)
        page.go(url)
        return page

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; events that come meanwhile go to their pages."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        self._socket.send(json.dumps(message))
        while True:
            got = self.read()
            if got.get("id") == number:
                assert "error" not in got, (method, got["error"])
                result: dict[str, Any] = got["result"]
                return result

    @contextmanager
    def traced(self) -> Iterator[list[Task]]:
        """The tasks of all pages' main threads in the block; they are there when it ends."""
        found: list[Task] = []
        of = {"includedCategories": ["toplevel", "devtools.timeline", "v8"]}
        self.call("Tracing.start", transferMode="ReturnAsStream", traceConfig=of)
        yield found
        self.call("Tracing.end")
        while (got := self.read()).get("method") != "Tracing.tracingComplete":
            pass
        parts = list[dict[str, Any]]()
        while not parts or not parts[-1].get("eof"):
            parts.append(self.call("IO.read", handle=got["params"]["stream"], size=1 << 20))
        found += _tasks(json.loads("".join(part["data"] for part in parts))["traceEvents"])

    def read(self) -> dict[str, Any]:
        """The next message; it is told to its page when it is an event."""
        got: dict[str, Any] = json.loads(self._socket.recv(timeout=WAIT_SECONDS))
        if "method" in got and (page := self._pages.get(got.get("sessionId", ""))):
            page.hear(got["method"], got["params"])
        return got


def _tasks(events: list[dict[str, Any]]) -> Iterator[Task]:
    main = {
        (one["pid"], one["tid"])
        for one in events
        if one["name"] == "thread_name" and one["args"]["name"] == "CrRendererMain"
    }
    spans = [one for one in events if one["ph"] == "X" and (one["pid"], one["tid"]) in main]
    for task in (one for one in spans if one["name"].endswith("RunTask")):
        told = Task(task["dur"] / 1000, task.get("tdur", 0) / 1000)
        if told.wall > LONG:
            end = task["ts"] + task["dur"]
            inner = [one for one in spans if task["ts"] <= one["ts"] < end and not one["name"].endswith("RunTask")]
            told = told._replace(most=str(max(inner, key=lambda one: one["dur"], default={"name": ""})["name"]))
        yield told


class Page:
    """A page, what it said and what it asked for since it was opened."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.said: list[str] = []
        """Every line of the console and the log, and every exception."""
        self.requests: list[str] = []
        """Addresses, its own first."""
        self._events: list[str] = []
        self._answered: dict[str, str] = {}

    def hear(self, event: str, told: dict[str, Any]) -> None:
        """An event of the protocol."""
        self._events.append(event)
        if event == "Page.frameNavigated" and "parentId" not in told["frame"]:  # what was loaded before is past
            self._events = [f"at {told['frame']['loaderId']}"]
        if event == "Log.entryAdded":
            self.said.append(f"{told['entry']['level']}: {told['entry']['text']}")
        elif event == "Runtime.consoleAPICalled":
            self.said.append(f"{told['type']}: {json.dumps(told['args'])}")
        elif event == "Runtime.exceptionThrown":
            self.said.append(f"exception: {told['exceptionDetails']['text']}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event == "Network.loadingFinished":
            self._answered.setdefault(told["requestId"], "")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol on this page."""
        return self._browser.call(method, self._session, **params)

    def go(self, url: str) -> None:
        """To another address, loaded, fonts and all."""
        told = self.call("Page.navigate", url=url)
        self.wait(f"at {told['loaderId']}")
        self.wait("Page.loadEventFired")
        self.evaluate("document.fonts.ready.then(() => new Promise(done => requestAnimationFrame(() => done(1))))")

    def close(self) -> None:
        """No more of it."""
        self.call("Page.close")

    def press(self, key: Literal["Tab", "Enter", "ArrowLeft", "ArrowRight"]) -> None:
        """A key of the keyboard, down and up."""
        code = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            told = text if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **told)

    def wait(self, event: str) -> None:
        """Wait for an event, unless it has come."""
        while event not in self._events:
            self._browser.read()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited. The protocol runs it, whatever the page's policy says."""
        got = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def strike(self, key: str) -> None:
        """Press any key and let it go: a character, or a name such as Escape and Tab."""
        code = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39}.get(key) or ord(key.upper()[0])
        text = key if len(key) == 1 else "\r" if key == "Enter" else ""
        told = {"key": key, "windowsVirtualKeyCode": code, "nativeVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **told)
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def received(self) -> list[str]:
        """What was answered to every request so far, as the page got it."""
        for name, body in self._answered.items():
            if not body:
                got = self.call("Network.getResponseBody", requestId=name)
                self._answered[name] = f"{got['body']} " if not got["base64Encoded"] else "(bytes) "
        return list(self._answered.values())

    def resize(self, width: int, height: int = 900) -> None:
        """Another size, in CSS pixels; below 600 wide it is a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def media(self, scheme: Literal["light", "dark"], kind: Literal["", "print"] = "") -> None:
        """Another colour scheme, or paper."""
        self.call(
            "Emulation.setEmulatedMedia", media=kind, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    def size(self) -> tuple[int, int]:
        """Width and height of what there is to scroll over."""
        root = "document.documentElement"
        width, height = self.evaluate(f"[{root}.scrollWidth, {root}.scrollHeight]")
        return width, height

    def screenshot(self, file: Path, *, top: int = 0, height: int | None = None) -> None:
        """The page as a PNG, or the part of it from `top` on."""
        width, whole = self.evaluate("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": top, "width": width, "height": min(height or whole, whole - top, MAX_PIXELS), "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, file: Path) -> None:
        """The page as it is printed, on A4."""
        size = {"paperWidth": 8.27, "paperHeight": 11.69}
        file.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=True, **size)["data"]))


def _binary() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)
