"""The page in a real browser: it is whole, it answers, it reaches for nothing, and nobody's text runs in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from report.browser import Browser, chromium
from report.reported_sweep import BASE, MATRICES, Reported
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from orchestrator.results.consolidate import consolidate
from orchestrator.results.report.writing import Report, report
from orchestrator.results.store import ChunkWriter, Store

SECTIONS = ["answer", "matrix", "learning", "discrete", "ranks", "stops", "cost", "limits", "repeat"]
#: What would run if any text of a run were taken for HTML or for the end of a script.
HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=2>\u2028'\"`${window.pwned=3}<!--"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(made: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(made.html, encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    browser.open(page)
    return browser


def lines(browser: Browser, figures: str) -> list[str]:
    """The paths of all lines of a section's charts."""
    return browser.run(
        f"return [...document.querySelectorAll('#{figures} .mark-line path')].map(p => p.getAttribute('d'))"
    )


def redrawn(browser: Browser, figures: str, before: list[str]) -> list[str]:
    return browser.until(lambda: (now := lines(browser, figures)) != before and now)


def test_everything_is_there_and_the_console_is_silent(opened: Browser) -> None:
    assert opened.run("return [...document.querySelectorAll('main section')].map(s => s.id)") == SECTIONS
    assert opened.run("return [...document.querySelectorAll('section')].every(s => s.innerText.length > 60)")
    for figures in ("learning-figures", "discrete-figures", "ranks-figures"):
        assert opened.run(
            f"return [...document.querySelectorAll('#{figures} figure')].every(f => f.querySelector('svg'))"
        )
    assert len(lines(opened, "learning-figures")) == 2 * len(BASE)
    assert opened.complaints() == []


def test_it_reaches_for_nothing(opened: Browser) -> None:
    assert opened.run("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    refused = opened.driver.execute_async_script(
        "const done = arguments[0]; fetch('https://example.org/').then(() => done(''), error => done(String(error)))"
    )
    assert "TypeError" in refused
    assert any("Content Security Policy" in line for line in opened.complaints())


def test_no_other_script_runs_in_it(opened: Browser) -> None:
    opened.run(
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 1'; document.body.append(s)"
    )
    assert opened.run("return window.pwned") is None
    assert any("inline script" in line for line in opened.complaints())


def test_a_metric_can_be_chosen(opened: Browser) -> None:
    before = lines(opened, "learning-figures")
    Select(opened.driver.find_element(By.ID, "learning-metric")).select_by_value("loss")
    redrawn(opened, "learning-figures", before)
    assert "training loss" in opened.run("return document.getElementById('learning-title').textContent")
    Select(opened.driver.find_element(By.ID, "metric-0")).select_by_visible_text("stall_ratio")
    shown = opened.run(
        "return [...document.querySelectorAll('#matrix table.heat')].filter(t => t.checkVisibility()).length"
    )
    assert shown == 1
    assert "stall_ratio" in opened.driver.find_element(By.ID, "matrix").text


def test_formats_and_columns_can_be_left_out(opened: Browser) -> None:
    before = lines(opened, "learning-figures")
    opened.driver.find_element(By.CSS_SELECTOR, "[data-filter=row][value=E4M3]").click()
    fewer = redrawn(opened, "learning-figures", before)
    opened.until(lambda: len(lines(opened, "learning-figures")) == 2 * (len(BASE) - 1))
    assert set(fewer) < set(before), "the scale and the other lines stay as they were"
    gone = opened.run("return [...document.querySelectorAll('#stops tr[data-row=E4M3]')].map(r => r.checkVisibility())")
    assert gone
    assert not any(gone)
    opened.driver.find_element(By.CSS_SELECTOR, "[data-filter=column][value=adamw]").click()
    opened.until(lambda: len(lines(opened, "learning-figures")) == len(BASE) - 1)
    opened.driver.find_element(By.CSS_SELECTOR, "[data-filter=column][value=manifold_adamw]").click()
    opened.until(lambda: "Nothing to show" in opened.driver.find_element(By.ID, "learning-figures").text)


def test_other_ranks_can_be_chosen(opened: Browser) -> None:
    titles = "return [...document.querySelectorAll('#ranks-figures figcaption')].map(c => c.textContent)"
    assert "E7M0" in opened.run(titles)[0]
    assert "warning" in opened.run(titles)[0]
    Select(opened.driver.find_element(By.ID, "ranks-shown")).select_by_value("manifold_adamw")
    chosen = [f"{name} · manifold_adamw · lr=0.001" for name in BASE]
    opened.until(lambda: {t.split(",")[0] for t in opened.run(titles)} == set(chosen))
    labels = opened.driver.find_element(By.CSS_SELECTOR, "#ranks-figures .role-axis-label").text
    assert opened.run("return document.querySelector('#ranks-figures svg').textContent").index(MATRICES[0])
    assert labels


def test_the_pointer_is_told_the_numbers(opened: Browser) -> None:
    chart = opened.driver.find_element(By.CSS_SELECTOR, "#learning-figures figure svg")
    opened.run("arguments[0].scrollIntoView({block: 'center'})", chart)
    ActionChains(opened.driver).move_to_element_with_offset(chart, 20, 0).perform()
    said = opened.until(lambda: opened.run("return document.getElementById('vg-tooltip-element')?.innerText"))
    for word in ("format", "step", "mean", "lowest", "highest", "replicates"):
        assert word in said
    assert any(name in said for name in BASE)
    assert "undefined" not in said
    assert len(said.splitlines()) == 6


def colour(browser: Browser, selector: str, name: str) -> list[int]:
    """Red, green and blue of what is drawn."""
    style = f"return getComputedStyle(document.querySelector('{selector}')).{name}.match(/\\d+/g).map(Number)"
    return list(browser.run(style))


@pytest.mark.parametrize(
    ("scheme", "media", "is_dark"), [("light", "", False), ("dark", "", True), ("dark", "print", False)]
)
def test_it_is_light_or_dark_and_paper_is_white(opened: Browser, scheme: str, media: str, is_dark: bool) -> None:
    opened.paint(scheme, media)
    paper, ink = (colour(opened, "body", name) for name in ("backgroundColor", "color"))
    assert (sum(paper) < 150) == is_dark
    assert (sum(ink) > 600) == is_dark
    assert colour(opened, "#learning-figures .role-axis-label text", "fill") == colour(opened, ".key", "color")
    assert (media == "print") == opened.run("return !document.querySelector('[data-filter=row]').checkVisibility()")


def test_nothing_is_cut_off_on_paper(opened: Browser) -> None:
    opened.run(
        "for (const body of document.querySelectorAll('.tall tbody'))"
        "  for (let i = 0; i < 99; i++) body.append(body.rows[0].cloneNode(true))"
    )
    cut = "return [...document.querySelectorAll('.tall, .yaml')].map(e => e.scrollHeight > e.clientHeight + 1)"
    assert all(opened.run(cut)), "a window shows a part of what is long"
    opened.paint(media="print")
    assert not any(opened.run(cut))


@pytest.mark.parametrize("width", [400, 1200])
def test_it_fits_the_window(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_it_says_everything_without_a_script(browser: Browser, page: Path) -> None:
    browser.open(page, script=False)
    try:
        source = browser.driver.find_element(By.TAG_NAME, "main")
        assert "E4M3 · manifold_adamw" in source.text
        assert len(browser.driver.find_elements(By.CSS_SELECTOR, "figure svg .mark-line path")) >= 2 * len(BASE)
        boxes = browser.driver.find_elements(By.CSS_SELECTOR, "input, select")
        assert not any(box.is_displayed() for box in boxes)
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def of_hostile_text(store: Store) -> Store:
    """A folder in which everything that is somebody's text would run if it could."""
    hostile = Reported(store, formats=["fp32", HOSTILE], seeds=2, text=HOSTILE)
    hostile.plan["description"] = hostile.plan["name"] = HOSTILE
    hostile.save()
    pack = hostile.plan["packs"][-1]["pack"]
    key = hostile.plan["packs"][-1]["lanes"][0]["key"]
    rows = {"key": [key], "step": [100], "matrix": [HOSTILE], "elements": [8], "effective_rank": [2.0]}
    ChunkWriter(store, pack, 1).append("layers", rows)
    hostile.end(hostile.plan["packs"][-1], key, "failed", 100, message=HOSTILE)
    hostile.journal.append({"event": "sweep_started", "command": [HOSTILE], "versions": {HOSTILE: HOSTILE}})
    store.write_bytes("sweep.yaml", f"# {HOSTILE}".encode())
    consolidate(store)
    return store


def test_text_of_a_run_stays_text(browser: Browser, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(report([of_hostile_text(store.sub(name)) for name in "ab"]).html, encoding="utf-8")
    browser.open(path, width=400)
    assert browser.run("return document.documentElement.scrollWidth") <= 400
    tooltip = "return document.querySelector('#vg-tooltip-element.visible')?.innerText"
    for figures in ("learning-figures", "ranks-figures"):
        browser.run(f"document.querySelector('#{figures} svg').scrollIntoView({{block: 'center'}})")
        chart = browser.driver.find_element(By.CSS_SELECTOR, f"#{figures} svg")
        ActionChains(browser.driver).move_to_element(chart).perform()
        browser.until(lambda: browser.run(tooltip))
    assert browser.run("return window.pwned") is None
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert browser.run("return document.scripts.length") == 3
    assert browser.complaints() == []
    assert browser.run("return document.body.innerText").count("window.pwned=1") > 10
