"""Headless Chromium on a page of a disk, and what it complains of."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
#: Set where there must be a browser: then a test without one fails and is not skipped.
REQUIRED = "ALTGRAD_REQUIRE_CHROMIUM"
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-default-apps"
)
Found = TypeVar("Found")


class Browser(NamedTuple):
    """One window."""

    driver: webdriver.Chrome

    def open(
        self, path: Path, *, width: int = 1200, scheme: str = "light", media: str = "", script: bool = True
    ) -> None:
        """Load a page and wait until its charts are drawn."""
        self.paint(scheme, media)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
        self.driver.get(path.as_uri())
        if script:
            self.until(lambda: self.run("return document.documentElement.dataset.ready"))

    def paint(self, scheme: str = "light", media: str = "") -> None:
        """Prefer light or dark, and act as a screen or as paper."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})

    def run(self, script: str, *arguments: object) -> Any:
        """What a function body returns."""
        return self.driver.execute_script(script, *arguments)

    def until(self, found: Callable[[], Found], seconds: float = 60) -> Found:
        """Wait until something is there."""
        deadline = time.monotonic() + seconds
        while not (value := found()):
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(0.02)
        return value

    def complaints(self) -> list[str]:
        """What the console was told since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own; the test is skipped where there is none."""
    if not (CHROMIUM.exists() and DRIVER.exists()):
        missing = f"no {CHROMIUM} and {DRIVER}: install Debian's chromium and chromium-driver"
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*_FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
