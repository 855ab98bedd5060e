"""The page of a single answer, as text and in a real browser."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from gradatim.bench import Table
from gradatim.report.answer_page import Answer, Section, write_answer
from gradatim.report.folder import ReportError

CHROMIUM = os.environ.get("GRADATIM_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"


def draw(figure):
    axes = figure.subplots()
    axes.plot([0, 1], [1, 2], color="C0")
    axes.set_xlabel("similarity")


def answer(**changes):
    rows = [[f"a reference with a rather long name ({i})", 0.5, "<b>"] for i in range(12)]
    settings = {
        "title": "identify",
        "kicker": "module:<script>alert(1)</script>",
        "answer": "GD(1 step, 6.06)",
        "headline": "GD(1 step, 6.06): similarity of errors 1",
        "facts": ["a task", "1000 contexts"],
        "draw": draw,
        "size": (560, 300),
        "figure_title": "Similarity",
        "alt": "Dots with intervals.",
        "sections": [
            Section("References", "How to read it.", Table(("name", "x", "y"), rows), ["ridge: 1 [0, 2]"])
        ],
        "notes": ["A note."],
    }
    return Answer(**{**settings, **changes})


@pytest.fixture
def page(tmp_path):
    return write_answer(
        answer(), tmp_path / "out", document={"a": 1}, command="gradatim identify --model 'a b'"
    )


def test_everything_is_said_and_escaped(page):
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "module:&lt;script&gt;" in text
    for said in (
        "<h1>GD(1 step, 6.06)</h1>",
        "1000 contexts",
        "How to read it.",
        "ridge: 1 [0, 2]",
        "A note.",
    ):
        assert said in text
    assert text.count("<tr>") == 13
    assert json.loads((page.parent / "answer.json").read_text(encoding="utf-8")) == {"a": 1}


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ReportError):
        write_answer(answer(), tmp_path, document={}, command="x")
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(page, width, scheme):
    from playwright.sync_api import sync_playwright

    troubles: list[str] = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("console", lambda m: troubles.append(m.text))
        tab.on("pageerror", lambda e: troubles.append(str(e)))
        tab.goto(page.as_uri())
        assert tab.locator("svg.mpl").count() == 1
        assert tab.locator("svg.mpl").bounding_box()["height"] > 100
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator("table.data tbody tr").count() == 12
        browser.close()
    assert troubles == []
