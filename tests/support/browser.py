"""A real browser for tests of pages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Browser:
    """A headless Chromium, driven through chromedriver's HTTP interface (W3C WebDriver)."""

    def __init__(self, driver: str, profile: Path, downloads: Path) -> None:
        self.downloads = downloads
        self.process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "on port" in line and "successfully" in line:
                self.base = f"http://127.0.0.1:{line.rstrip('.\n').split()[-1]}"
                break
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--window-size=1400,1600", f"--user-data-dir={profile}",
        ]  # fmt: skip
        options = {"args": flags, "prefs": {"download.default_directory": str(downloads)}}
        always = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        self.session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": always}})["sessionId"]

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.base + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def open(self, page: Path) -> None:
        self.visit(page.as_uri())

    def visit(self, address: str) -> None:
        self.call("POST", f"/session/{self.session}/url", {"url": address})

    def press(self, *keys: str) -> None:
        """Press and release keys, as a person does."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        body = {"actions": [{"type": "key", "id": "k", "actions": actions}]}
        self.call("POST", f"/session/{self.session}/actions", body)

    def wait(self, script: str, seconds: float = 20.0) -> Any:
        """What a script returns, once it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.run(script):
                return found
            time.sleep(0.02)
        raise AssertionError(f"never true: {script}: {self.log()}")

    def run(self, script: str, *args: Any) -> Any:
        return self.call(
            "POST", f"/session/{self.session}/execute/sync", {"script": script, "args": list(args)}
        )

    def set(self, name: str, value: str) -> None:
        self.run(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', {bubbles: true}));", name, value,
        )  # fmt: skip

    def log(self) -> list[str]:
        return [
            entry["message"]
            for entry in self.call("POST", f"/session/{self.session}/se/log", {"type": "browser"})
        ]

    def shown(self, attribute: str) -> list[str]:
        found = self.run(
            "return [...document.querySelectorAll('.card:not([hidden])')].map(c => c.dataset[arguments[0]]);",
            attribute,
        )
        return list(found)

    def close(self) -> None:
        try:
            self.call("DELETE", f"/session/{self.session}")
        finally:
            self.process.terminate()
            self.process.wait(20)


@contextmanager
def started(root: Path) -> Iterator[Browser]:
    """A browser with its files in `root`; the test is skipped where there is none."""
    driver = shutil.which("chromedriver")
    if driver is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        assert "RIPPLE_TESTS_NEED_BROWSER" not in os.environ, "chromium and chromedriver must be there in CI"
        pytest.skip("no chromium with chromedriver on this machine (Debian: chromium-driver)")
    (root / "downloads").mkdir()
    made = Browser(driver, root / "profile", root / "downloads")
    try:
        yield made
    finally:
        made.close()
