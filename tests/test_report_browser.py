"""The report's page in a real browser: asks for nothing, sorts and filters by keyboard, dark, printed, on a phone, without script.

Needs playwright and a Chromium. Where CI runs, both must be there: a test that silently skips proves nothing.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from commands import run
from report_page import ReadPage
from study_runs import write_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
STYLE = files("layerbank.report.page").joinpath("page.css").read_text(encoding="utf-8")
ENOUGH = 4.5  # contrast of text, WCAG 2 AA


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "CI must have a browser: apt-get install chromium"
        pytest.skip("no chromium on the path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven data sets with four probes: every kind of block that needs no stores."""
    runs = tmp_path_factory.mktemp("browser") / "runs"
    datasets = [f"set {number}" for number in range(6)] + ["<script>alert(1)</script>" + "long" * 20]
    write_study(runs, datasets=datasets, seeds=(0, 1), probes=("linear-cls", "linear-all", "attn-last", "alf"))
    assert run("report", runs).exit_code == 0
    return runs / "report" / "index.html"


def opened(browser: Any, path: Path, **options: Any) -> Any:
    """The page in a context of its own; whatever it complains of or asks for fails the test."""
    page = browser.new_context(**options).new_page()
    page.troubles = []
    page.on("console", lambda message: page.troubles.append(message.text))
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("request", lambda request: page.troubles.append(request.url) if _foreign(request.url) else None)
    page.goto(path.as_uri())
    assert page.troubles == []
    return page


def _foreign(url: str) -> bool:
    return not url.startswith(("file:", "data:"))


def test_it_asks_for_nothing_and_complains_of_nothing(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file)
    loaded = page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert loaded
    assert page.evaluate("document.querySelector('figure img').getBoundingClientRect().width") > 200
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    page.wait_for_timeout(50)
    assert page.troubles == []


def test_columns_sort_by_keyboard_numbers_from_the_best_down_and_back(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    table = page.locator("#t-results")
    head = table.locator("thead th", has_text="balanced accuracy")
    head.get_by_role("button").focus()
    for order in ("descending", "ascending"):
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        values = [float(text) for text in table.locator("tbody td:nth-child(5)").all_inner_texts()]
        assert values == sorted(values, reverse=order == "descending")
    names = table.locator("thead th", has_text="data set")
    names.get_by_role("button").focus()
    page.keyboard.press("Space")
    assert names.get_attribute("aria-sort") == "ascending"
    assert head.get_attribute("aria-sort") == "none"
    texts = table.locator("tbody td:nth-child(3)").all_inner_texts()
    assert [text[:5] for text in texts[-8:]] == ["set 5"] * 8


def test_missing_numbers_stay_below_whichever_way_it_sorts(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file)
    head = page.locator("#t-probes thead th", has_text="mean gain")
    for _ in range(2):
        head.get_by_role("button").click()
        assert page.locator("#t-probes tbody tr").last.locator("td").nth(2).inner_text() == "-"


def test_lines_are_filtered_as_one_types(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file)
    field = page.locator("input[data-table=t-results]")
    field.focus()
    page.keyboard.type("ALF")
    assert page.locator("#t-results tbody tr:visible").count() == 14
    assert field.locator("xpath=../..").locator("output").inner_text() == "14 of 56 lines"
    for _ in "ALF":
        page.keyboard.press("Backspace")
    assert page.locator("#t-results tbody tr:visible").count() == 56


def test_a_link_to_what_is_folded_opens_it(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file)
    assert not page.locator("#t-classes-0").is_visible()
    page.evaluate("location.hash = '#t-classes-0'")
    page.wait_for_function("document.getElementById('t-classes-0').closest('details').open")
    assert page.locator("#t-classes-0").is_visible()


def test_without_script_everything_is_there_and_nothing_looks_alive(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file, java_script_enabled=False)
    assert page.locator("th button").count() == 0
    assert page.locator("input:visible").count() == 0
    assert page.locator("#t-results tbody tr:visible").count() == 56
    page.locator("summary", has_text="The protocol").click()
    assert page.get_by_text("lrs").is_visible()


@pytest.mark.parametrize("width", [320, 390, 768, 1400, 2200])
def test_no_width_scrolls_the_page_sideways(browser: Any, page_file: Path, width: int) -> None:
    page = opened(browser, page_file, viewport={"width": width, "height": 800})
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        "[...document.querySelectorAll('main *')].filter((one) => !one.closest('.scroll, svg') && "
        "one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_dark_and_light_follow_the_system(browser: Any, page_file: Path) -> None:
    shades = {}
    for scheme in ("light", "dark"):
        page = opened(browser, page_file, color_scheme=scheme)
        text, ground = page.evaluate("((s) => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        shades[scheme] = [sum(map(int, re.findall(r"\d+", shade)[:3])) for shade in (text, ground)]
    assert shades["light"][0] < 200 < 600 < shades["light"][1]
    assert shades["dark"][1] < 200 < 600 < shades["dark"][0]


def test_paper_has_the_results_and_none_of_what_only_a_screen_can_use(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file, viewport={"width": 690, "height": 1000}, color_scheme="dark")
    page.emulate_media(media="print")
    for gone in ("nav", ".filter", ".under", "details"):
        assert page.locator(f"{gone}:visible").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("#t-probes").is_visible()
    assert (
        page.evaluate("document.querySelector('.tall').scrollHeight - document.querySelector('.tall').clientHeight")
        <= 1
    )
    widths = page.evaluate("[...document.querySelectorAll('table')].map((one) => one.getBoundingClientRect().right)")
    assert max(widths) <= 690
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_a_screen_reader_finds_landmarks_heads_names_and_alternatives(page_file: Path) -> None:
    page = ReadPage(page_file)
    tags = [tag for tag, _ in page.tags]
    assert {"header", "nav", "main", "footer"} <= set(tags)
    assert [tags.count(tag) for tag in ("main", "h1", "nav")] == [1, 1, 1]
    assert dict(page.tags)["html"] == {"lang": "en"}
    headings = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(two - one <= 1 for one, two in pairwise(headings))
    assert len(page.ids) == len(set(page.ids))
    for name, table in page.tables.items():
        assert set(table.scopes[: len(table.columns)]) == {"col"}, name
        assert set(table.scopes[len(table.columns) :]) == {"row"}, name
        assert table.labelled_by in page.ids
    for image in page.images:
        assert image.get("alt") or image.get("aria-label")
    for tag, attributes in page.tags:
        if tag == "section":
            assert attributes["aria-labelledby"] in page.ids
        if attributes.get("role") == "region":
            assert (attributes["tabindex"], attributes["aria-labelledby"] in page.ids) == ("0", True)
        if tag == "a" and (attributes["href"] or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in page.ids


@pytest.mark.parametrize("ground", ["page", "card"])
@pytest.mark.parametrize("ink", ["text", "quiet", "accent", "good", "bad"])
def test_every_ink_stands_out_from_every_ground_in_both_schemes(ink: str, ground: str) -> None:
    light, dark, paper = (
        dict(re.findall(r"--(\w+): (#\w+)", part)) for part in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    )
    for palette in (light, dark, paper):
        assert contrast(palette[ink], palette[ground]) >= ENOUGH


def contrast(one: str, two: str) -> float:
    """Of two colours, as WCAG 2 defines it.

    The brighter luminance over the darker, each with 0.05 added.
    """
    lighter, darker = sorted((_luminance(one), _luminance(two)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    values = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_contrast_of_black_on_white_is_twenty_one() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
