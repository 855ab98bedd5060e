"""Matplotlib figures as themed, deterministic, accessible SVG."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.report.svg import CYCLE, INK, LINE, MUTED, PAPER, clean, render


def draw(figure):
    axes = figure.subplots()
    for i in range(8):
        axes.plot([0, 1], [i, i + 1], f"C{i}", marker="o", label=f"line {i}")
    axes.fill_between([0, 1], 0, 1, alpha=0.2)
    axes.axhline(0, color="k")
    axes.legend()
    axes.set_title(r"$\eta_t$")


def test_every_colour_becomes_a_variable():
    svg = render(draw, (400, 300), "k", "title", "what one sees")
    assert not re.search("|".join((*CYCLE, INK, MUTED, LINE, PAPER, "#000000")), svg)
    for i in range(8):
        assert f"var(--c{i})" in svg
    assert "var(--ink)" in svg
    assert "fill-opacity: 0.2" in svg


def test_same_figure_same_bytes():
    assert render(draw, (400, 300), "k", "t", "a") == render(draw, (400, 300), "k", "t", "a")


def test_ids_are_prefixed_and_resolve():
    svg = render(draw, (400, 300), "key", "t", "a")
    root = ElementTree.fromstring(svg)
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert all(i.startswith("key-") for i in ids)
    used = re.findall(r'(?:href="|url\()#([^")]*)', svg)
    assert used
    assert set(used) <= set(ids)


def test_accessible_and_no_global_style():
    root = ElementTree.fromstring(render(draw, (400, 300), "k", "A title", "What one sees"))
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "k-title k-desc"
    assert [root[0].text, root[1].text] == ["A title", "What one sees"]
    tags = {e.tag for e in root.iter()}
    assert "text" in tags
    assert not tags & {"style", "script", "metadata"}
    assert (root.get("width"), root.get("height")) == ("400", "300")


def test_style_of_the_caller_is_untouched():
    import matplotlib

    before = dict(matplotlib.rcParams)
    render(draw, (200, 100), "k", "t", "a")
    assert dict(matplotlib.rcParams) == before


def test_errors_pass_through():
    def broken(figure):
        raise KeyError("no such arm")

    with pytest.raises(KeyError, match="no such arm"):
        render(broken, (200, 100), "k", "t", "a")


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_shown_as_text(text):
    def write(figure):
        figure.text(0.1, 0.5, clean(text), parse_math=False)

    root = ElementTree.fromstring(render(write, (200, 100), "k", text, text))
    assert (root[0].text or "") == clean(text).replace("\r\n", "\n").replace("\r", "\n")
    assert not [e for e in root.iter() if e.tag == "script"]
