"""The search page in a real browser: ask, compare, keyboard, dark mode, no scripts."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from browsers import browser as browser
from browsers import contrast, luminance, visits
from gradatim.inference.search import FolderIndex, IndexSettings, build_index
from gradatim.serve import make_app

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "inference", "search"))
from folders import make_folder, put

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    import uvicorn

    home = tmp_path_factory.mktemp("pages")
    folder = make_folder(home / "docs", 10)
    put(
        folder / "deep/notes.txt",
        f"Sewing\n======\n\nThe needle is sharp. {EVIL} " + "thread and cloth. " * 60,
    )
    build_index(folder, home / "ix", IndexSettings(methods=("binary",), bits=32))
    config = uvicorn.Config(make_app(FolderIndex(home / "ix")), port=0, log_level="error")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join(10)


@pytest.fixture
def visit(browser, server):
    """Open an address of the server, whose pages ask nobody else."""
    with visits(browser, (server, "data:")) as go:
        yield lambda path="/", **more: go(server + path, **more)


def wait(until, seconds: float = 20.0) -> None:
    """Poll from outside: the page's policy forbids scripts that are given as text."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.05)


def filled(page, columns):
    wait(
        lambda: page.locator(".column").count() == columns and page.locator(".column[aria-busy]").count() == 0
    )


def test_ask_and_compare(visit):
    page = visit()
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("matrix norm")
    page.check("input[value=binary]")
    page.click(".go")
    filled(page, 2)
    assert [h.inner_text() for h in page.query_selector_all("h2")] == ["bm25", "binary"]
    assert page.locator(".column[data-method=bm25] .hit").count() == 10
    assert page.locator(".column[data-method=bm25] mark").first.inner_text().lower() in ("matrix", "norm")
    assert "q=matrix+norm&m=bm25&m=binary" in page.url
    assert "bm25: 10 hits, binary: 10 hits" in page.locator("#status").inner_text()
    # Columns stand side by side.
    a, b = (page.locator(f".column[data-method={m}]").bounding_box() for m in ("bm25", "binary"))
    assert a["x"] + a["width"] <= b["x"]
    assert a["y"] == b["y"]
    # A column more or less is asked for at once.
    page.uncheck("input[value=bm25]")
    filled(page, 1)
    page.check("input[value=bm25]")
    filled(page, 2)
    page.reload()
    filled(page, 2)
    assert page.input_value("#q") == "matrix norm"


def test_the_same_passage_in_other_columns(visit):
    page = visit("/?q=needle+sharp&m=bm25&m=binary&k=50")
    filled(page, 2)
    first = page.locator(".column[data-method=bm25] .hit").first
    assert "deep/notes.txt" in first.locator(".file").inner_text()
    assert "line 4" in first.locator(".file").inner_text()
    assert first.locator(".also").inner_text().startswith("also ")
    first.hover()
    assert page.locator(".hit.same").count() == 2
    first.locator("summary").click()
    assert EVIL in first.locator("details .text").inner_text()
    assert page.locator("img").count() == 0


def test_answers_that_are_none(visit):
    page = visit("/?q=zzzz&m=bm25")
    assert "no passage shares a word" in page.locator(".note").inner_text()
    page.fill("#q", "")
    page.click(".go")
    assert page.url.endswith("q=zzzz&m=bm25")  # the browser asks for a question first


def test_back_and_forth(visit):
    page = visit("/?q=matrix&m=bm25")
    page.fill("#q", "needle")
    page.press("#q", "Enter")
    wait(lambda: page.title().startswith("needle"))
    page.go_back()
    wait(lambda: page.input_value("#q") == "matrix" and page.locator("mark").first.inner_text() == "matrix")
    page.go_forward()
    wait(lambda: page.input_value("#q") == "needle")


def test_keyboard(visit):
    page = visit("/?q=needle&m=bm25")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results"
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName"))
    assert "SUMMARY" in reached
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    assert page.evaluate("getSelection().toString() || document.getElementById('q').selectionEnd") in (
        "needle",
        6,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(visit, scheme):
    page = visit("/?q=needle+sharp&m=bm25", color_scheme=scheme)
    paper = luminance(page, "body", "backgroundColor")
    assert (paper > 0.9) == (scheme == "light")
    for selector in (
        "h2",
        "h3",
        ".text",
        ".file",
        ".path",
        ".sub",
        "summary",
        ".facts",
        "legend",
        "footer p",
    ):
        ink = luminance(page, selector)
        assert contrast(ink, paper) >= 4.5, selector
    ink, mark = luminance(page, "mark"), luminance(page, "mark", "backgroundColor")
    assert contrast(ink, mark) >= 4.5
    ink, button = luminance(page, ".go"), luminance(page, ".go", "backgroundColor")
    assert contrast(ink, button) >= 4.5


def test_the_theme_button(visit):
    page = visit(color_scheme="light")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Switch to dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_without_scripts(visit):
    page = visit("/?q=needle&m=bm25&m=binary&k=5", java_script_enabled=False)
    assert page.locator(".column").count() == 2
    assert page.locator("mark").first.inner_text() == "needle"
    page.fill("#q", "matrix")
    page.press("#q", "Enter")
    page.wait_for_url("**q=matrix**")
    assert page.locator(".column[data-method=bm25] .hit").count() == 5
    assert not page.locator("#theme").is_visible()


@pytest.mark.parametrize("width", [320, 390, 700, 1280, 2200])
def test_no_page_is_wider_than_the_screen(visit, width):
    page = visit("/?q=needle+matrix&m=bm25&m=binary", width=width)
    page.eval_on_selector_all("details", "ds => ds.forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_names_and_landmarks(visit):
    page = visit("/?q=needle&m=bm25&m=binary")
    assert page.locator("h1").count() == 1
    assert page.get_by_role("search").count() == 1
    assert page.get_by_role("main").count() == 1
    assert page.get_by_role("searchbox", name="Question").count() == 1
    assert page.get_by_role("region", name="bm25").count() == 1
    assert page.get_by_role("group", name="Compare").get_by_role("checkbox").count() == 2
