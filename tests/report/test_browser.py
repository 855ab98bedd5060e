"""The report in a real browser: nothing fails to load, everything is drawn, found and reachable."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import synthetic_reports as synthetic

from browsers import browser as browser
from browsers import contrast, luminance, visits
from gradatim.report import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("browser") / "report"
    write_report([*synthetic.house(), synthetic.hostile(), synthetic.empty(failed=True)], out)
    return out


@pytest.fixture
def visit(browser, folder):
    """Open a page of the report, which asks for nothing but itself."""
    with visits(browser, ("file:", "data:")) as go:
        yield lambda name="index", hash_="", **more: go((folder / f"{name}.html").as_uri() + hash_, **more)


def names(folder: Path) -> list[str]:
    return sorted(p.stem for p in folder.glob("*.html"))


def test_every_page_loads_and_every_link_leads_somewhere(visit, folder):
    seen, waiting = set(), ["index"]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        page = visit(name)
        links = page.eval_on_selector_all("a[href]", "as => as.map(a => a.href)")
        for link in links:
            if link.startswith("https://arxiv.org/"):
                continue
            file, _, anchor = link.removeprefix("file://").partition("#")
            assert Path(file).is_file(), link
            if file.endswith(".html"):
                waiting.append(Path(file).stem)
                if anchor and Path(file).stem == name:
                    assert page.locator(f"[id='{anchor}']").count() == 1, link
    assert sorted(seen) == names(folder)


def rows(page) -> int:
    return page.locator("#forest tr.claim:visible").count()


def test_search_and_filters(visit):
    page = visit()
    total = rows(page)
    assert page.inner_text("#found") == f"{total} claims"
    page.fill("#q", "flat RATE")
    assert rows(page) == 2
    assert page.inner_text("#found") == f"2 of {total} claims"
    assert page.url.endswith("#q=flat+RATE")
    page.fill("#q", "Tarzanagh")
    assert rows(page) == 6
    page.fill("#q", "")
    page.select_option("#paper", "boosted-network")
    assert rows(page) == 4
    assert page.locator("#forest tbody:visible").count() == 1
    page.select_option("#verdict", "inconclusive")
    inconclusive = rows(page)
    assert 0 < inconclusive < 4
    assert page.locator("#forest tr.claim:visible .verdict .w-inconclusive").count() == inconclusive
    page.select_option("#room", "losses")
    assert rows(page) == 0
    assert page.locator("#none").is_visible()
    page.click("#clear")
    page.wait_for_function("!document.getElementById('found').textContent.includes('of')")
    assert rows(page) == total
    assert "#" not in page.url


def test_the_address_keeps_the_filter(visit):
    page = visit(hash_="#q=wine&paper=boosted-network&verdict=inconclusive")
    assert rows(page) == 1
    assert page.input_value("#q") == "wine"
    assert page.input_value("#verdict") == "inconclusive"
    page.evaluate("location.hash = '#room=probes'")
    page.wait_for_function("document.getElementById('q').value === ''")
    assert rows(page) == 6
    assert rows(visit(hash_="#paper=no-such-paper")) == rows(visit())


def test_enter_in_the_search_box_stays_on_the_page(visit):
    page = visit()
    page.fill("#q", "wine")
    page.press("#q", "Enter")
    assert page.url.endswith("#q=wine")
    assert rows(page) == 1


def test_every_figure_is_drawn(visit, folder):
    for name in names(folder):
        page = visit(name)
        boxes = page.eval_on_selector_all(
            "svg.mpl, svg.forest",
            """es => es.map(e => { const b = e.getBoundingClientRect(), i = e.getBBox();
                return [b.width, b.height, i.width, i.height,
                        e.querySelectorAll('path,line,use').length]; })""",
        )
        assert boxes or name == "index"
        assert all(min(b) > 0 for b in boxes), name
        # Colours of the page reach the drawing.
        strokes = page.eval_on_selector_all(
            "svg.mpl path", "es => es.map(e => getComputedStyle(e).stroke + getComputedStyle(e).fill)"
        )
        assert not [s for s in strokes if "12, 13, 2" in s]


# A text's box is as high as its font's tallest letter, which most texts lack: allow a third of it.
OVERLAPS = """svg => {
  const boxes = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim())
    .map(t => [t.textContent, t.getBoundingClientRect()]);
  const frame = svg.getBoundingClientRect(), found = [];
  boxes.forEach(([a, p], i) => {
    const air = p.height / 3;
    if (p.left < frame.left - 2 || p.right > frame.right + 2) found.push('clipped: ' + a);
    if (p.top < frame.top - air || p.bottom > frame.bottom + air) found.push('clipped: ' + a);
    boxes.slice(i + 1).forEach(([b, q]) => {
      const beside = p.left >= q.right - 1 || q.left >= p.right - 1;
      const apart = p.top >= q.bottom - 2 || q.top >= p.bottom - 2;
      if (!beside && !apart) found.push(a + ' / ' + b);
    });
  });
  return found;
}"""


@pytest.mark.parametrize("width", [390, 1280])
def test_no_label_overlaps_another_or_is_cut(visit, width):
    for name in ("index", "schedule-refinement", "boosted-network", "attention-svm", "compare-retrieval"):
        page = visit(name, width=width)
        for svg in page.query_selector_all("svg.mpl, svg.axis"):
            assert svg.evaluate(OVERLAPS) == [], name


@pytest.mark.parametrize("width", [320, 390, 700, 1000, 1280])
def test_no_page_is_wider_than_the_screen(visit, folder, width):
    for name in names(folder):
        page = visit(name, width=width)
        page.eval_on_selector_all("details", "ds => ds.forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_rows_are_cards_on_a_phone(visit):
    page = visit(width=390)
    row = page.locator("tr.claim").first
    statement, plot = row.locator(".statement").bounding_box(), row.locator(".plot").bounding_box()
    assert plot["y"] >= statement["y"] + statement["height"]
    assert plot["width"] > 330
    # The axis stays in sight above the cards, as wide as their plots.
    axis = page.locator("svg.axis").bounding_box()
    assert (axis["x"], axis["width"]) == pytest.approx((plot["x"], plot["width"]))


TEXTS = (
    "h1", ".lede", ".facts", ".filters label span", ".statement a", ".figures .unit", ".figures .sub",
    ".word.w-reproduced", ".word.w-inconclusive", ".word.w-explained-away", ".word.w-survives", ".rooms",
    ".legend p", "footer p", ".count.w-not-reproduced dd", ".axis text",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(visit, scheme):
    page = visit(color_scheme=scheme)
    paper = luminance(page, "body", "backgroundColor")
    assert (paper > 0.9) == (scheme == "light")
    for selector in TEXTS:
        ink = luminance(page, selector, "fill" if "axis" in selector else "color")
        assert contrast(ink, paper) >= 4.5, (selector, contrast(ink, paper))
    page = visit("schedule-refinement", color_scheme=scheme)
    for i in range(8):
        color = page.evaluate(
            f"""() => {{ const e = document.body.appendChild(document.createElement('i'));
                e.id = 'probe{i}'; e.style.color = 'var(--c{i})'; }}"""
        )
        assert color is None
        ink = luminance(page, f"#probe{i}", "color")
        assert contrast(ink, paper) >= 3.0, i


def test_the_theme_button_switches_and_is_remembered(visit):
    page = visit(color_scheme="light")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Switch to dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.get_by_role("button", name="Switch to light").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == before


def test_reachable_by_keyboard(visit):
    page = visit("schedule-refinement")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(150):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.className || document.activeElement.tagName"))
        if page.evaluate("document.activeElement === document.body"):
            break
    assert {"quiet", "home", "copy", "SUMMARY", "scroll"} <= reached
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_accessible_names_and_landmarks(visit, folder):
    for name in names(folder):
        page = visit(name)
        assert page.locator("h1").count() == 1
        assert page.locator("main").count() == 1
        unnamed = page.eval_on_selector_all(
            "svg[role=img]",
            "es => es.filter(e => !e.getAttribute('aria-label') && !e.querySelector('title')).length",
        )
        assert unnamed == 0
        levels = page.eval_on_selector_all(
            "main h1, main h2, main h3, main h4", "hs => hs.map(h => +h.tagName[1])"
        )
        assert all(b <= a + 1 for a, b in pairwise(levels)), name
    page = visit()
    assert page.get_by_role("table").count() >= 1
    assert page.get_by_role("rowheader").count() > 10
    assert page.get_by_role("search").count() == 1


def test_copy_puts_the_code_on_the_clipboard(visit):
    page = visit("schedule-refinement", permissions=["clipboard-read", "clipboard-write"])
    code = page.locator("#use ~ .code")
    code.locator(".copy").click()
    page.wait_for_function("[...document.querySelectorAll('.copy')].some(b => b.textContent === 'Copied')")
    assert "refine_schedule" in page.evaluate("navigator.clipboard.readText()")


def test_print_opens_what_is_folded_and_is_light(visit):
    page = visit("schedule-refinement", color_scheme="dark")
    closed = page.locator("details:not([open])").count()
    assert closed > 0
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".copy").first.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == closed
    assert len(page.pdf()) > 20_000


def test_readable_without_scripts(visit):
    page = visit(java_script_enabled=False)
    assert page.locator("tr.claim").first.is_visible()
    assert not page.locator(".filters").is_visible()
