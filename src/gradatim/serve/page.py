"""What the page shows, filled into its templates; everything from an index or a question is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup, escape

from gradatim.inference.search import Answer, FolderIndex, Hit
from gradatim.inference.search.highlight import excerpt

EXPLAINED = {
    "bm25": "the question’s words, rarer ones counting more",
    "dense": "the meaning, by a sentence encoder",
    "binary": "the topic, by short binary codes",
    "seal": "phrases of the folder that a language model expects",
    "hybrid": "bm25 and dense together",
}


@dataclass(frozen=True)
class Asked:
    """A question as the address states it."""

    question: str
    methods: tuple[str, ...]
    k: int
    rerank: bool


@dataclass(frozen=True)
class Column:
    """One method's answer, or the line that says why there is none."""

    method: str
    status: int
    answer: Answer | None
    error: str = ""


def render_page(index: FolderIndex, asked: Asked, columns: Sequence[Column], rerank: str | None) -> str:
    """The whole page."""
    return (
        _templates()
        .get_template("page.html.jinja")
        .render(
            manifest=index.manifest,
            methods=index.methods,
            asked=asked,
            columns=columns,
            offers_rerank=rerank is not None,
        )
    )


def render_column(column: Column) -> str:
    """One column."""
    return _templates().get_template("column.html.jinja").render(column=column)


def marked(text: str, spans: Sequence[tuple[int, int]], begin: int = 0, end: int | None = None) -> Markup:
    """A stretch of text with `<mark>` around the spans inside it."""
    end = len(text) if end is None else end
    parts: list[Any] = []
    at = begin
    for start, stop in spans:
        if start < begin or stop > end:
            continue
        parts += [escape(text[at:start]), Markup("<mark>"), escape(text[start:stop]), Markup("</mark>")]
        at = stop
    parts.append(escape(text[at:end]))
    return Markup("").join(parts)


def shown(hit: Hit) -> Markup:
    """The telling stretch of a hit."""
    begin, end = excerpt(hit.text, list(hit.highlights))
    before = Markup("… ") if begin else Markup("")
    after = Markup(" …") if end < len(hit.text) else Markup("")
    return before + marked(hit.text, hit.highlights, begin, end) + after


def place(hit: Hit) -> str:
    """Line or page."""
    if hit.page is not None:
        return f"page {hit.page}"
    return f"line {hit.line}" if hit.line is not None else ""


@lru_cache(maxsize=1)
def _templates() -> Environment:
    folder = resources.files("gradatim.serve") / "templates"
    texts = {f.name: f.read_text(encoding="utf-8") for f in folder.iterdir() if f.name.endswith(".jinja")}
    environment = Environment(
        loader=DictLoader(texts), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "shown": shown,
        "place": place,
        "whole": lambda hit: marked(hit.text, hit.highlights),
        "cut": lambda hit: excerpt(hit.text, list(hit.highlights)) != (0, len(hit.text)),
        "printable": lambda text: text.encode("utf-8", "replace").decode(),
        "key": lambda hit: f"{hit.file}:{hit.line}:{hit.page}:{hit.start}".encode(
            "utf-8", "replace"
        ).decode(),
        "score": lambda score: f"{score:.3g}",
        "moment": lambda text: text[:16].replace("T", " "),
    }
    environment.globals["explained"] = EXPLAINED
    return environment
