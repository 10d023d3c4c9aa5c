"""Makes docs/example/: the report of a run, its card, and a picture of its first screen.

``python docs/make_example.py runs/quickstart`` writes ``quickstart.html``, ``quickstart.md`` and ``quickstart.png``,
named by the run. The picture needs Debian's chromium and chromium-driver.
"""

import base64
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from orchestrator.results.consolidate import consolidate
from orchestrator.results.report.writing import report
from orchestrator.results.store import Store

FOLDER = Path(__file__).with_name("example")
CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
#: The window, and the share of its size that the picture has.
WIDTH, HEIGHT, SCALE = 1440, 2090, 0.8


def photograph(page: Path, picture: Path) -> None:
    """A picture of the top of a page, in light colours, as soon as its charts are drawn."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory() as profile:
        for flag in (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": SCALE, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            driver.get(page.absolute().as_uri())
            WebDriverWait(driver, 60).until(lambda d: d.execute_script("return document.documentElement.dataset.ready"))
            shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            picture.write_bytes(base64.b64decode(shot["data"]))
        finally:
            driver.quit()


def main(run: str) -> None:
    """Make the three files."""
    store = Store.open(run)
    consolidate(store)
    made = report([store])
    FOLDER.mkdir(exist_ok=True)
    page = FOLDER / f"{store.name}.html"
    page.write_text(made.html, encoding="utf-8")
    page.with_suffix(".md").write_text(made.markdown, encoding="utf-8")
    photograph(page, page.with_suffix(".png"))


if __name__ == "__main__":
    main(sys.argv[1])
