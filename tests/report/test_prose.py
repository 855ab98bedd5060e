"""Words for the page."""

import re
from dataclasses import replace

import pytest
import synthetic_reports as synthetic
from hypothesis import given
from hypothesis import strategies as st

from gradatim.bench import Paper
from gradatim.report.prose import arxiv_url, bibtex, markdown, python, sentence

TAGS = re.compile(r"<(/?)([a-zA-Z0-9]+)([^>]*)>")
ALLOWED = {
    "p", "em", "strong", "code", "pre", "ul", "ol", "li", "a", "h3", "h4", "h5", "h6", "hr", "br",
    "blockquote", "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip


def test_markdown_renders_and_fits_the_outline():
    html = markdown("# Title\n\n*a* `b`\n\n| x |\n|---|\n| 1 |")
    assert "<h3>Title</h3>" in html
    assert "<em>a</em> <code>b</code>" in html
    assert "<td>1</td>" in html


def test_markdown_never_loads_or_runs_anything():
    html = markdown("![x](http://e.org/x.png) <img src=x onerror=y> [l](javascript:alert(1))")
    assert "<img" not in html
    assert 'href="javascript' not in html


@given(st.text(alphabet=st.sampled_from("<>&\"'`*_[]()!#-|\\ \nabscriptonerror=:/"), max_size=80))
def test_markdown_only_makes_known_tags(text):
    for _, name, attributes in TAGS.findall(markdown(text)):
        assert name in ALLOWED
        assert not re.search(r"\bon\w+\s*=\s*[^&]", re.sub(r'"[^"]*"', "", attributes))


@given(st.text(max_size=60))
def test_code_is_escaped_and_whole(text):
    import html

    out = python(text)
    assert {name for _, name, _ in TAGS.findall(out)} <= {"span"}
    plain = html.unescape(TAGS.sub("", out))
    assert plain.split() == text.replace("\ufeff", "").split() or "\ufeff" in text


def test_bibtex():
    entry = bibtex(Paper("When & Why", "Defazio, Cutkosky and Mehta", 2023, "2310.07831"))
    assert entry.startswith("@misc{defazio2023when,")
    assert "author        = {Defazio and Cutkosky and Mehta}," in entry
    assert r"title         = {When \& Why}," in entry
    assert "url           = {https://arxiv.org/abs/2310.07831}," in entry


@pytest.mark.parametrize("number", ["", "javascript:alert(1)", "2310.07831/../x", "x"])
def test_only_arxiv_numbers_become_links(number):
    assert arxiv_url(Paper("t", "a", 2020, number)) == ""


def test_sentences():
    by_id = {v.claim.id: v for r in synthetic.house() for v in r.verdicts}
    assert "95% interval" in sentence(by_id["logistic-flat"])
    assert "without spread" in sentence(by_id["feasible"])
    assert "within the stated margin" in sentence(by_id["fast"])
    settled = replace(by_id["logistic-cos"], seeds_needed=38)
    assert settled.word == "inconclusive"
    assert "About 38 seeds would settle it" in sentence(settled)
    nothing = synthetic.empty().verdicts[0]
    assert sentence(nothing) == "No trial of this claim has finished."
    assert sentence(synthetic.empty(seeds=1).verdicts[0]).startswith("One seed gives +1 x")
