"""Chromium without a window, driven by the DevTools protocol over two pipes: without a port, without a library."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--mute-audio",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip
LONGEST_WAIT_S = 120
KEYS = {"Enter": "\r", " ": " "}
"""Keys that type a text."""
KEY_CODES = {"Escape": 27, "Enter": 13, " ": 32}
"""Keys to which the browser itself reacts, by their numbers."""


def find_chromium() -> str | None:
    """The browser's command; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A running browser."""

    def __init__(self, command: str, profile: str) -> None:
        reads, self._out = os.pipe()
        self._in, writes = os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (reads, writes)]
        arguments = [command, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
        ends = [(os.POSIX_SPAWN_DUP2, theirs[0], 3), (os.POSIX_SPAWN_DUP2, theirs[1], 4)]
        self.pid = os.posix_spawn(command, arguments, os.environ, file_actions=[*silent, *ends], setpgroup=0)
        for end in (reads, writes, *theirs):
            os.close(end)
        self._buffer = b""
        self._calls = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        os.write(self._out, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._calls:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def wait_for(self, method: str, session: str) -> None:
        """Returns once an event came, or if it did already."""
        while not any(event["method"] == method and event.get("sessionId") == session for event in self.events):
            self.events.append(self._receive())

    def close(self) -> None:
        os.close(self._out)
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._in)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], LONGEST_WAIT_S)
            data = os.read(self._in, 1 << 20) if ready else b""
            assert data, "the browser ended or does not answer"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


class Page:
    """A page that is open in a browser."""

    def __init__(self, browser: Browser, file: Path, width: int, height: int, *, dark: bool) -> None:
        self._browser = browser
        self._target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        preferences = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in preferences.items()]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=file.absolute().as_uri())
        browser.wait_for("Page.loadEventFired", self._session)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def problems(self) -> list[str]:
        """What the page's console has: errors, warnings, refusals of the content policy."""
        mine = [event for event in self._browser.events if event.get("sessionId") == self._session]
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [json.dumps(event["params"])[:500] for event in mine if event["method"] in kinds]

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript, after the next two frames."""
        frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        program = f"(async () => {{ const value = await ({expression}); await {frames}; return value; }})()"
        answer = self.call("Runtime.evaluate", expression=program, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).textContent")

    def press(self, key: str, *, shift: bool = False) -> None:
        number = {"windowsVirtualKeyCode": KEY_CODES[key]} if key in KEY_CODES else {}
        common = {"key": key, "code": key, "modifiers": 8 if shift else 0, **number}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": KEYS[key]} if key in KEYS else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)
        self.run("0")

    def type(self, text: str) -> None:
        """Puts a text into the field that has the focus."""
        self.call("Input.insertText", text=text)
        self.run("0")

    def mouse(self, *points: tuple[float, float], press: bool = False) -> None:
        """Moves the mouse along points, with its button pressed from the first to the last if `press`."""
        for number, (x, y) in enumerate(points):
            self._mouse("mouseMoved", x, y, 1 if press and number else 0)
            if press and not number:
                self._mouse("mousePressed", x, y, 1)
        if press:
            self._mouse("mouseReleased", *points[-1], 0)
        self.run("0")

    def click(self, selector: str) -> None:
        x, y = self.middle(selector)
        self.mouse((x, y), press=True)

    def middle(self, selector: str) -> tuple[float, float]:
        """The middle of an element, after it was scrolled into view."""
        box = self.run(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)}); "
            "found.scrollIntoView({block: 'center', behavior: 'instant'}); const box = found.getBoundingClientRect(); "
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        return box[0], box[1]

    def screenshot(self, *, whole: bool = False) -> bytes:
        """PNG of what is in view, or of the whole page."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)

    def _mouse(self, kind: str, x: float, y: float, buttons: int) -> None:
        pressed = {"button": "left", "clickCount": 1} if kind != "mouseMoved" or buttons else {}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, buttons=buttons, **pressed)


@contextmanager
def running_browser(command: str) -> Iterator[Browser]:
    """A browser with a profile of its own, ended with all its processes."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(command, profile)
        try:
            yield browser
        finally:
            browser.close()
