"""Chromium, driven through chromedriver with the WebDriver protocol in plain HTTP: no other package is needed.

Every request of a page and every line of its console is recorded, so that a test can say that there was none."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["KEYS", "Browser", "browser", "needs_browser"]

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Left": "\ue012", "Up": "\ue013", "Right": "\ue014", "Down": "\ue015",
        "Tab": "\ue004"}
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]

needs_browser = pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")),
                                   reason="needs Chromium and its driver to click through the pages")


class Browser:
    """One window."""

    def __init__(self, address: str, profile: Path) -> None:
        self._base = f"{address}/session"
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options,
                  "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        self._base += "/" + self._send("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        self._send("/url", {"url": "about:blank"})
        self.requests()  # those of the page of a new window

    def _send(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=180) as answer:
            return json.load(answer)["value"]

    def resize(self, width: int, height: int = 900) -> None:
        """Another width of the page, as a phone has it too, in CSS pixels."""
        self._send("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}})

    def open(self, page: Path, fragment: str = "") -> None:
        """Opens a file; returns when its scripts have run."""
        self._send("/url", {"url": "about:blank"})
        self._send("/url", {"url": page.as_uri() + fragment})

    def run(self, script: str, *values: Any) -> Any:
        """What a script returns; `arguments` are the values."""
        return self._send("/execute/sync", {"script": script, "args": list(values)})

    def press(self, *keys: str) -> None:
        """Presses keys, wherever the focus is: names of KEYS, or characters. A page that a key opens gets the next."""
        for key in keys:
            actions = [{"type": step, "value": KEYS.get(key, key)} for step in ("keyDown", "keyUp")]
            self._send("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def click(self, selector: str) -> None:
        """Clicks an element as a hand would: it must be in view and not covered."""
        found = self._send("/element", {"using": "css selector", "value": selector})
        self._send(f"/element/{found[ELEMENT]}/click")

    def back(self) -> None:
        """The browser's own "back"."""
        self._send("/back")

    @property
    def address(self) -> str:
        """Of the page that is open."""
        return str(self._send("/url", method="GET"))

    def picture(self, path: Path) -> None:
        """Saves what the window shows."""
        import base64

        path.write_bytes(base64.b64decode(self._send("/screenshot", method="GET")))

    def console(self) -> list[str]:
        """Lines of the console since the last call, complaints of the browser included."""
        return [entry["message"] for entry in self._send("/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call."""
        lines = [json.loads(entry["message"])["message"] for entry in self._send("/se/log", {"type": "performance"})]
        return [line["params"]["request"]["url"] for line in lines if line["method"] == "Network.requestWillBeSent"]

    def close(self) -> None:
        """Ends Chromium."""
        self._send("", method="DELETE")


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A window, closed at the end with the driver; `folder` holds the profile."""
    with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True) as driver:
        try:
            assert driver.stdout is not None
            port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
            window = Browser(f"http://127.0.0.1:{port}", folder / "profile")
            try:
                yield window
            finally:
                window.close()
        finally:
            driver.kill()
