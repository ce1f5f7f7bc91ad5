"""The pages of reports in Debian's Chromium: no request to the network, phones, contrast, keyboard."""

from pathlib import Path
from typing import Any

import pytest
from made_report import make_report, other_report

from resnet_jax.reporting import page

pytestmark = pytest.mark.browser

SIZES = {"desktop": (1200, 900), "phone": (375, 800)}
PAGES = {
    "report": lambda: page.render(make_report()),
    "comparison": lambda: page.render_comparison([make_report(), other_report()]),
}

# The contrast of every text against what lies behind it. Source: WCAG 2.2, relative luminance and contrast ratio.
CONTRASTS = """
() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const light = colour => colour.slice(0, 3).map(x => linear(x / 255))
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
      if (colour[3] > 0) throw new Error("a background that shines through");
    }
    return [255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), node = walker.currentNode.parentElement;
    if (!text || !node.getClientRects().length || ["STYLE", "SCRIPT", "title", "desc"].includes(node.tagName)) continue;
    const style = getComputedStyle(node);
    const colour = parse(node.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(colour), light(behind(node))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), text, style.fontSize]);
  }
  return found;
}
"""
FOCUSABLE = "a[href], button, input, select, textarea, summary, [tabindex='0']"


@pytest.fixture(params=PAGES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text(PAGES[request.param](), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, file):
    """A function that opens the page in a window of a size and a colour scheme."""
    contexts = []

    def open_page(size: str = "desktop", scheme: str = "light") -> tuple[Any, list[str]]:
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        tab, faults = context.new_page(), []
        tab.on("console", lambda message: faults.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: faults.append(f"error: {error}"))
        tab.on("request", lambda one: faults.append(one.url) if not one.url.startswith(("data:", "file:")) else None)
        tab.on("requestfailed", lambda one: faults.append(f"failed: {one.url[:80]}"))
        tab.goto(file.as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        return tab, faults

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wrong_and_nothing_leaves_the_file(opened, size):
    tab, faults = opened(size)
    tab.wait_for_load_state("networkidle")
    assert faults == []
    assert tab.evaluate("document.documentElement.lang") == "en"
    assert tab.title()


def test_the_page_fits_a_phone(opened):
    """Wide tables scroll inside their own container."""
    tab, _ = opened("phone")
    assert tab.evaluate("document.documentElement.scrollWidth") == SIZES["phone"][0]
    wide = tab.evaluate(
        """[...document.querySelectorAll("body *")].filter(one => !one.closest(".scroll, .skip, svg"))
        .filter(one => one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML.slice(0, 80))"""
    )
    assert wide == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_a_contrast_of_4_5(opened, scheme):
    tab, _ = opened(scheme=scheme)
    found = tab.evaluate(CONTRASTS)
    assert len(found) > 150
    assert [one for one in found if one[0] < 4.5] == []


def test_dark_mode_is_dark(opened):
    colours = {
        scheme: opened(scheme=scheme)[0].evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert colours == {"light": "rgb(244, 245, 248)", "dark": "rgb(18, 21, 27)"}


def test_the_tab_key_reaches_everything(opened):
    tab, _ = opened()
    wanted = tab.evaluate(
        f'[...document.querySelectorAll("{FOCUSABLE}")].map((one, i) => one.dataset.number = String(i))'
    )
    assert len(wanted) >= 8
    reached = []
    for _ in range(len(wanted)):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.dataset.number"))
    assert reached == wanted  # in the order of the page
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_skip_link_shows_up_and_skips(opened):
    tab, _ = opened()
    tab.keyboard.press("Tab")
    box = tab.locator(".skip").bounding_box()
    assert box["x"] >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"


def test_every_picture_has_words_and_is_drawn(opened):
    tab, _ = opened()
    pictures = tab.evaluate("[...document.images].map(one => [one.alt, one.complete && one.naturalWidth > 0])")
    assert all(alt and drawn for alt, drawn in pictures)
    charts = tab.evaluate(
        """[...document.querySelectorAll("svg[role=img]")].map(one => one.getAttribute("aria-labelledby").split(" ")
        .map(id => document.getElementById(id).textContent))"""
    )
    assert charts
    assert all(title and words for title, words in charts)


def test_it_prints_without_what_paper_cannot_do(opened):
    tab, _ = opened()
    tab.emulate_media(media="print")
    assert tab.locator("nav").first.is_hidden()
    assert tab.evaluate(
        "[...document.querySelectorAll('.scroll')].every(one => getComputedStyle(one).overflowX == 'visible')"
    )
