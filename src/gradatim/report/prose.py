"""Words for the page: Markdown and code as safe HTML, verdicts as sentences, a paper as BibTeX."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt

from gradatim.bench.study import Paper
from gradatim.bench.verdict import Verdict
from gradatim.report.formatting import count, number, shown

_ARXIV = re.compile(r"(\d{4}\.\d{4,5}|[a-z.-]+/\d{7})(v\d+)?", re.IGNORECASE)


def markdown(text: str) -> str:
    """Markdown as HTML; raw HTML is shown as text, and images, which could load from afar, are left out."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = parser.parse(text)
    for token in tokens:
        # The page's own outline goes down to h2.
        if token.tag in ("h1", "h2", "h3"):
            token.tag = {"h1": "h3", "h2": "h4", "h3": "h5"}[token.tag]
    return parser.renderer.render(tokens, parser.options, {})


def python(code: str) -> str:
    """Python code with its words in `<span class=...>`, everything escaped."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return highlight(code, PythonLexer(stripnl=True), HtmlFormatter(nowrap=True, classprefix="k-"))


def arxiv_url(paper: Paper | None) -> str:
    """The paper's page, or nothing where its number does not look like one."""
    return f"https://arxiv.org/abs/{paper.arxiv}" if paper and _ARXIV.fullmatch(paper.arxiv) else ""


def bibtex(paper: Paper) -> str:
    """The paper as a BibTeX entry."""
    names = [n.strip() for n in re.split(r",\s*(?:and\s+)?|\s+&\s+|\s+and\s+", paper.authors) if n.strip()]
    first = re.sub(r"\W", "", (names or ["anonymous"])[0].split()[-1]).lower()
    word = next((w for w in re.findall(r"\w+", paper.title.lower()) if len(w) > 3), "paper")
    fields = {
        "title": paper.title,
        "author": " and ".join(names),
        "year": str(paper.year),
        "eprint": paper.arxiv,
        "archivePrefix": "arXiv",
        "url": arxiv_url(paper),
    }
    lines = [f"  {k:<13} = {{{_tex(v)}}}," for k, v in fields.items() if v]
    return "\n".join([f"@misc{{{first}{paper.year}{word},", *lines, "}"])


def _tex(text: str) -> str:
    return re.sub(r"([{}%#$&_\\])", r"\\\1", text) if not text.startswith("https://") else text


def sentence(v: Verdict) -> str:
    """What was found, in one or two sentences for a reader in a hurry."""
    e, claim = v.estimate, v.claim
    if e.mean is None:
        return "No trial of this claim has finished."
    unit = f" {claim.unit}" if claim.unit else ""
    s = shown(e)
    if e.low is None:
        return f"One seed gives {s.mean}{unit}; an interval needs at least two."
    over = count(e.n, "seed")
    found = (
        f"{s.mean}{unit} at each of {over}, without spread"
        if e.sd == 0
        else f"{s.mean}{unit} over {over}, 95% interval {s.low} to {s.high}"
    )
    return f"{found}. {_reason(v)}"


def _reason(v: Verdict) -> str:
    e, claim = v.estimate, v.claim
    assert e.low is not None
    assert e.high is not None
    margin = number(claim.margin)
    if claim.test == "equivalent":
        return {
            "reproduced": f"It lies within the stated margin of ±{margin}.",
            "not reproduced": f"It lies outside the stated margin of ±{margin}.",
            "inconclusive": f"It is not settled whether it lies within ±{margin}.{_more(v)}",
        }[v.word]
    if v.word == "reproduced":
        return "The effect goes the claim's way, and chance does not explain it."
    if v.word == "not reproduced":
        if e.high < 0:
            return "The effect goes against the claim."
        if e.high <= 0:
            return "There is no effect in the claim's direction."
        return f"The effect is smaller than {margin}, the least that would count."
    if e.low > 0:
        return f"Above zero on its own, but not after allowing for all the study's claims (Holm).{_more(v)}"
    return f"The interval includes zero.{_more(v)}"


def _more(v: Verdict) -> str:
    if v.seeds_needed is None:
        return " More seeds alone would not settle it."
    return f" About {count(v.seeds_needed, 'seed')} would settle it (80% power)."
