# SPDX-License-Identifier: Apache-2.0
"""The page in a browser: it is valid, fits, has contrast, and shows hostile text as text."""

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from farwatch_harness import report
from farwatch_harness.results import Run
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from tests.support import report_records as records

# Chromium and its driver.
pytestmark = pytest.mark.packages

OPTIONS = (
    "--headless=new",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTHS = (360, 800, 1400)
SCHEMES = ("light", "dark")
HEIGHT = 900
PAPER = 700
RUNS: dict[str, Callable[[], Run]] = {
    "green": records.green,
    "build_error": records.build_error,
    "checkpatch_error": records.checkpatch_error,
    "lost_event": records.lost_event,
    "hostile": records.hostile,
}
EACH_RUN = pytest.mark.parametrize("name", RUNS)

# What is wrong with the document's structure, in words.
STRUCTURE = """
const wrong = [], all = (query) => [...document.querySelectorAll(query)];
const say = (found, words) => { for (const each of found) wrong.push(words + ': ' + each.outerHTML.slice(0, 200)); };
say(all('script, iframe, object, embed, img, form, base, [onload], [onerror], [style]'), 'does not belong here');
say(all('[src], link[href]:not([href^="data:"]), a:not([href^="#"])'), 'leads elsewhere');
say(all('a').filter((link) => !document.getElementById(link.hash.slice(1))), 'leads nowhere');
say(all('a').filter((link) => !link.textContent.trim()), 'has no words');
say(all('th:not([scope])'), 'has no scope');
say(all('table').filter((table) => !table.caption && !table.closest('[aria-label]')), 'has no name');
say(all('svg:not([role=img][aria-label])'), 'has no words');
say(all('[aria-labelledby]').filter((each) => !document.getElementById(each.getAttribute('aria-labelledby'))), 'lacks');
const ids = all('[id]').map((each) => each.id);
for (const id of ids.filter((id, at) => ids.indexOf(id) !== at)) wrong.push('two of ' + id);
let level = 0;
for (const heading of all('h1, h2, h3, h4, h5, h6')) {
  const next = Number(heading.tagName[1]);
  if (next > level + 1) say([heading], 'skips a level');
  level = next;
}
if (all('h1').length !== 1 || all('main').length !== 1 || document.documentElement.lang !== 'en') wrong.push('outline');
return wrong;
"""

# Texts with less contrast than WCAG AA asks for, 4.5 to 1.
CONTRAST = """
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const luminance = (colour) => numbers(colour).slice(0, 3)
  .map((value) => value / 255)
  .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
  .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
const transparent = (colour) => numbers(colour)[3] === 0;
const faint = new Map(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let seen = 0;
while (walker.nextNode()) {
  const holder = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !holder.checkVisibility() || holder.closest('.unseen')) continue;
  let behind = holder;
  while (behind.parentElement && transparent(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  const style = getComputedStyle(holder), ground = getComputedStyle(behind).backgroundColor;
  const values = [holder.closest('svg') ? style.fill : style.color, ground].map(luminance).sort((a, b) => b - a);
  const ratio = (values[0] + 0.05) / (values[1] + 0.05);
  seen += 1;
  if (ratio < 4.5) faint.set(`${holder.tagName}.${holder.className}`, ratio.toFixed(2));
}
return [seen, [...faint]];
"""
OPEN_ALL = "document.querySelectorAll('details').forEach((each) => each.open = true)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Chromium without a window."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    assert all(programs.values()), f"make setup installs what is missing of {programs}"
    options = ChromeOptions()
    options.binary_location = str(programs["chromium"])
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    if os.geteuid() == 0:
        # Chromium's sandbox does not work for root.
        options.add_argument("--no-sandbox")
    driver = Chrome(
        options=options, service=ChromeService(executable_path=str(programs["chromedriver"]))
    )
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the written page of each run, with a benchmark and with runs of other versions."""
    folder = tmp_path_factory.mktemp("report")
    return {
        name: report.write(make(), folder / name, records.bench(), by_version(make()))
        for name, make in RUNS.items()
    }


def by_version(run: Run) -> list[tuple[str, Run]]:
    """Return this run as that of one version, and a failed one as that of another."""
    return [("6.12", run), ("7.3", records.lost_event())]


def show(
    browser: Chrome, page: Path, width: int = 1400, scheme: str = "light", media: str = "screen"
) -> None:
    """Load the page into a window, or a telephone, of this width."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    command(browser, "Emulation.setEmulatedMedia", media=media, features=features)
    size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": width < 600}
    command(browser, "Emulation.setDeviceMetricsOverride", **size)
    browser.get(page.as_uri())


def command(browser: Chrome, name: str, **parameters: Any) -> None:
    """Send a command of the DevTools protocol."""
    browser.execute_cdp_cmd(name, parameters)


def errors(browser: Chrome) -> list[str]:
    """Return what the console has logged since the last call."""
    return [entry["message"] for entry in browser.get_log("browser")]  # type: ignore[no-untyped-call]


@EACH_RUN
def test_page_is_valid_and_loads_no_resource_and_no_script(
    browser: Chrome, pages: dict[str, Path], name: str
) -> None:
    show(browser, pages[name])
    assert browser.execute_script(STRUCTURE) == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert errors(browser) == []
    assert browser.title.startswith("Farwatch, patch by patch. ")


@EACH_RUN
def test_page_fits_every_width_and_has_contrast_in_both_schemes(
    browser: Chrome, pages: dict[str, Path], name: str
) -> None:
    for width, scheme in product(WIDTHS, SCHEMES):
        show(browser, pages[name], width, scheme)
        browser.execute_script(OPEN_ALL)
        sizes = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert sizes == [min(width, sizes[0]), width], f"{width}, {scheme}"
        seen, faint = browser.execute_script(CONTRAST)
        assert seen > 300
        assert faint == [], f"{width}, {scheme}"
        dark = (
            browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            != "rgb(255, 255, 255)"
        )
        assert dark is (scheme == "dark")


def test_wide_diffs_scroll_within_their_box(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["green"], WIDTHS[0])
    browser.execute_script(OPEN_ALL)
    widths = (
        "return [...document.querySelectorAll('pre.diff')].map((box) => box.scrollWidth -"
        " box.clientWidth)"
    )
    assert max(browser.execute_script(widths)) > 100


def test_every_cell_of_the_matrix_has_its_status_as_text(
    browser: Chrome, pages: dict[str, Path]
) -> None:
    show(browser, pages["build_error"], WIDTHS[0])
    rows = browser.execute_script(
        "return [...document.querySelectorAll('.matrix tr:has(td)')].map(  (row) =>"
        " [...row.cells].slice(1).map((cell) => cell.querySelector('.unseen').textContent))"
    )
    assert rows[0] == ["passed", "skipped", *["passed"] * 5]
    assert rows[1] == ["passed", "passed", "failed", *["blocked"] * 4]
    assert rows[2] == rows[3] == ["passed"] * 7
    sections = browser.find_elements(By.CSS_SELECTOR, ".matrix th[scope=rowgroup]")
    assert [each.text for each in sections] == ["Prerequisites", "The series"]


def test_failed_cell_links_to_its_reason(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["build_error"])
    assert "Failed: 0001" in browser.find_element(By.CLASS_NAME, "result").text
    assert "error: expected ';'" in browser.find_element(By.CLASS_NAME, "failures").text
    browser.find_element(By.CSS_SELECTOR, ".matrix td.failed a").click()
    target = browser.find_element(By.CSS_SELECTOR, ":target")
    assert target.text == "make: *** Error 1"
    assert (
        0
        <= browser.execute_script("return arguments[0].getBoundingClientRect().top", target)
        < HEIGHT
    )


def test_link_into_folded_details_opens_them(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["green"])
    folded = (
        "return document.getElementById('patch-3-sparse').checkVisibility({contentVisibilityAuto:"
        " true})"
    )
    closed = "return document.getElementById('patch-3-sparse').closest('details').open"
    assert browser.execute_script(closed) is False
    browser.find_element(By.CSS_SELECTOR, ".matrix a[href='#patch-3-sparse']").click()
    assert browser.execute_script(closed) is True
    assert browser.execute_script(folded) is True


def test_details_of_failures_are_open_and_others_folded(
    browser: Chrome, pages: dict[str, Path]
) -> None:
    show(browser, pages["lost_event"])
    opened = browser.execute_script(
        "return [...document.querySelectorAll('details[open]')].map((one) => one.innerText)"
    )
    assert len(opened) == 2
    assert "1 failed, 4 passed" in opened[0]
    assert "AssertionError: assert [] == ['a']" in opened[1]
    assert (
        browser.execute_script("return document.querySelectorAll('details:not([open])').length")
        > 20
    )


def test_keyboard_focus_reaches_links_and_is_visible(
    browser: Chrome, pages: dict[str, Path]
) -> None:
    show(browser, pages["build_error"])
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    focused = browser.switch_to.active_element
    assert focused.text == "0001 part-1 build"
    assert focused.value_of_css_property("outline-style") == "solid"


def test_print_has_diffs_no_logs_and_dark_text(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["lost_event"], PAPER, "dark", "print")
    visible = (
        "return [...document.querySelectorAll(arguments[0])].map((each) => each.checkVisibility())"
    )
    assert set(browser.execute_script(visible, "pre.diff")) == {True}
    assert set(browser.execute_script(visible, ".logs")) == {False}
    assert (
        browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") <= PAPER
    assert browser.execute_script(CONTRAST)[1] == []


def test_hostile_text_is_shown_as_text(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["hostile"])
    browser.execute_script(OPEN_ALL)
    seen = browser.find_element(By.TAG_NAME, "main").text
    assert (
        "<script>document.title = 'run'</script> <img src=x onerror=alert(1)> ]]> </pre></details>"
        " &amp;" in seen
    )
    assert "{{ 7 * 6 }} {% raw %}" in seen
    assert len(browser.find_elements(By.CSS_SELECTOR, "article.patch")) == 4


def test_page_shows_events_and_benchmark(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["green"])
    rows = browser.find_elements(By.CSS_SELECTOR, "table.events tbody tr")
    words = "CREATE guest host host host guest · none IN_CREATE, FAN_CREATE, DN_CREATE"
    assert " ".join(rows[0].text.split()) == words
    assert [
        each.get_attribute("aria-label") for each in browser.find_elements(By.TAG_NAME, "svg")
    ] == [
        "Latency by mode: median and 99th percentile",
        "Events per second that arrive in the guest, by the number of files created",
        "Operations per second of farwatchd in a guest, relative to other daemons",
        "Operations per second of farwatchd without a guest, relative to other daemons",
    ]
    assert "lost" in browser.find_elements(By.TAG_NAME, "svg")[1].text


def test_versions_are_side_by_side(browser: Chrome, pages: dict[str, Path]) -> None:
    browser.get(pages["green"].as_uri())
    rows = browser.find_elements(By.CSS_SELECTOR, "#versions tbody tr")
    names = [row.find_element(By.CLASS_NAME, "number").text for row in rows]
    assert names == ["6.12", "7.3"]
    last = [records.green().patches[-1], records.lost_event().patches[-1]]
    assert [row.find_element(By.TAG_NAME, "th").text.split()[1] for row in rows] == [
        patch.name for patch in last
    ]
    classes = [row.get_attribute("class") for row in rows]
    assert classes == ["passed", "failed"]


def test_one_version_needs_no_table_of_versions(browser: Chrome, tmp_path: Path) -> None:
    run = records.green()
    browser.get(report.write(run, tmp_path, by_version=[("6.12", run)]).as_uri())
    assert browser.find_elements(By.ID, "versions") == []
