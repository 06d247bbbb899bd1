"""The page in a real Chromium: slider, keyboard, hover, escaping, network, speed, width.

Needs Debian's packages `chromium` and `chromium-driver`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_sweep import HOSTILE, PLACES, write_sweep

from dora_jax.launch import report

pytestmark = pytest.mark.slow
webdriver = pytest.importorskip("selenium.webdriver")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = write_sweep(tmp_path_factory.mktemp("sweep"))
    assert report.main([f"--runs={sweep}", "--budget_usd=120", "--no-figures"]) == 0
    return sweep / "report.html"


def open_page(browser, page: Path, width: int = 1200, scheme: str = "light") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    wait(browser, "document.documentElement.dataset.drawn === 'all'")


def wait(browser, condition: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not browser.execute_script(f"return {condition}"):
        assert time.monotonic() < end, condition
        time.sleep(0.02)


def rule_x(browser) -> float:
    """Where the budget's line is drawn."""
    script = """const line = [...document.querySelectorAll('#figure-pareto line')]
        .find(each => (each.getAttribute('stroke') || '').includes('accent'));
        return line.getBoundingClientRect().x"""
    return browser.execute_script(script)


def text_of(browser, selector: str) -> str:
    return browser.execute_script(f"return document.querySelector({selector!r}).textContent")


def test_the_slider_moves_the_recommendation(browser, page: Path) -> None:
    open_page(browser, page)
    state = json.loads(text_of(browser, "#state"))["budgets"]["answers"]
    assert text_of(browser, "#amount") == "$120.00"
    middle = rule_x(browser)
    move = """const slider = document.getElementById('slider'); slider.value = arguments[0];
        slider.dispatchEvent(new Event('input', {bubbles: true}))"""
    for place in (0, len(state) - 1):
        browser.execute_script(move, place)
        assert text_of(browser, "#verdict") == state[place]["verdict"]
        assert text_of(browser, "#plans tbody td") == state[place]["rows"]["plans"][0][0]
        for section in ("turns", "next"):
            told = state[place]["texts"][section]
            assert text_of(browser, f"#{section} p") == told and state[place]["text"] in told
            rows = "return document.querySelectorAll(arguments[0]).length"
            shown = browser.execute_script(rows, f"#{section} .scroll:not([hidden]) tbody tr")
            assert shown == len(state[place]["rows"][section])
        assert text_of(browser, "#near li") == state[place]["near"][0]
        time.sleep(0.2)
        assert (rule_x(browser) > middle) == (place > 0)
    assert state[0]["rows"]["plans"][0][0] == "annotate"  # all that so little money pays


def test_the_keyboard_is_enough(browser, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    slider = browser.find_element("id", "slider")
    before = text_of(browser, "#amount")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert text_of(browser, "#amount") != before
    assert slider.get_attribute("aria-valuetext") == text_of(browser, "#amount")
    browser.find_element("tag name", "body").send_keys(Keys.TAB)
    visible = "return getComputedStyle(document.activeElement).outlineStyle !== 'none'"
    assert browser.execute_script(visible)


def test_hovering_shows_a_points_numbers(browser, page: Path) -> None:
    from selenium.webdriver import ActionChains

    open_page(browser, page)
    points = browser.find_elements("css selector", "#figure-pareto .mark-symbol.role-mark path")
    assert len(points) == 2 * len(PLACES)
    ActionChains(browser).move_to_element(points[0]).perform()
    wait(browser, "!!document.querySelector('#vg-tooltip-element.visible')")
    shown = text_of(browser, "#vg-tooltip-element")
    assert "micro_f1" in shown and "labels" in shown and "$" in shown


def test_what_models_wrote_runs_nothing(browser, page: Path) -> None:
    open_page(browser, page)
    assert browser.title == "wlp: distill or annotate?"
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    shown = text_of(browser, "#samples")
    assert HOSTILE.replace("\u2028", " ")[:40] in shown.replace("\u2028", " ")


def test_a_hostile_name_is_text_under_the_mouse_too(browser, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    from dora_jax.report import figures
    from dora_jax.report.content import Page, Section
    from dora_jax.report.page import html_of

    rows = [
        {"strategy": "a", "run": HOSTILE, "step": step, "value": float(step)} for step in (1, 2)
    ]
    section = Section("s", "S", figures=[figures.training(rows, "f1")])
    file = tmp_path / "page.html"
    file.write_text(html_of(Page("T", "", [], None, [section], "")), "utf-8")
    open_page(browser, file)
    point = browser.find_elements("css selector", "#figure-training .mark-symbol path")[0]
    ActionChains(browser).move_to_element(point).perform()
    wait(browser, "!!document.querySelector('#vg-tooltip-element.visible')")
    assert "<script>" in text_of(browser, "#vg-tooltip-element")
    assert browser.title == "T"
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0


def test_no_complaint_and_no_network(browser, page: Path) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    for width, scheme in ((1200, "light"), (390, "dark")):
        open_page(browser, page, width, scheme)
        wider = "return document.documentElement.scrollWidth > window.innerWidth"
        assert not browser.execute_script(wider), "the page scrolls sideways"
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert asked == {page.as_uri()}


def test_dark_paper_is_dark_and_print_is_light(browser, page: Path) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    open_page(browser, page, scheme="dark")
    assert browser.execute_script(colour) == "rgb(20, 23, 27)"
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    media = {"media": "print", "features": features}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    assert browser.execute_script(colour) == "rgb(255, 255, 255)"


def test_two_hundred_runs_load_in_two_seconds(
    browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sweep = tmp_path_factory.mktemp("large")
    write_sweep(sweep, places=tuple(range(100, 2100, 100)), seeds=5)
    assert report.main([f"--runs={sweep}", "--no-figures"]) == 0
    page = sweep / "report.html"
    assert page.stat().st_size < 2e6
    open_page(browser, page)
    drawn = browser.execute_script("return window.drawnAfterMs")
    assert drawn < 2000, f"{drawn:.0f} ms"
    assert "300 results" in text_of(browser, "#provenance")  # with the teachers
