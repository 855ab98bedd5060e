"""HTML through BeautifulSoup and Python's own parser: nothing is run, resolved or fetched."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from gradatim.tasks.documents.decoding import clean, is_binary
from gradatim.tasks.documents.passages import Block, Passage, UnreadableError, pack

_BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog",
    "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4",
    "h5", "h6", "header", "hr", "html", "legend", "li", "main", "menu", "ol", "p", "pre", "search",
    "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
})  # fmt: skip
_UNSEEN = frozenset({
    "script", "style", "template", "noscript", "head", "nav", "svg", "math", "object", "iframe",
    "textarea", "select", "button",
})  # fmt: skip


def read_html(data: bytes, name: str) -> Iterator[Passage]:
    """Passages of a page, titled by its title and headings; scripts, styles and navigation are left out."""
    if is_binary(data):
        raise UnreadableError("binary file")
    from bs4 import BeautifulSoup

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XML read as HTML, text that looks like a file name
        soup = BeautifulSoup(data, "html.parser")
    title = clean(soup.title.get_text()) if soup.title else ""
    blocks = list(_blocks(soup))
    if not title.strip():
        title = next((b.text for b in blocks if b.heading), "") or name
    yield from pack(blocks, title)


def _blocks(soup: Any) -> Iterator[Block]:
    from bs4.element import CData, NavigableString, Tag

    homes: dict[int, tuple[Any, bool, bool]] = {}

    def home(tag: Any) -> tuple[Any, bool, bool]:
        """The block a tag stands in, whether it is shown, whether its blanks count; kept per tag."""
        path = []
        found = homes.get(id(tag))
        while found is None and tag is not None and tag.parent is not None:
            path.append(tag)
            tag = tag.parent
            found = homes.get(id(tag))
        block, shown, exact = found or (soup, True, False)
        for one in reversed(path):
            block = one if one.name in _BLOCKS else block
            shown = shown and one.name not in _UNSEEN and one.get("hidden") is None
            exact = exact or one.name == "pre"
            homes[id(one)] = block, shown, exact
        return block, shown, exact

    current: Any = None
    parts: list[str] = []
    exact = False
    for node in soup.descendants:
        if isinstance(node, Tag):
            if node.name == "br":
                parts.append("\n")
            continue
        if type(node) not in (NavigableString, CData):
            continue
        block, shown, keeps = home(node.parent)
        if not shown:
            continue
        if block is not current:
            yield from _block(current, parts, exact)
            current, parts, exact = block, [], keeps
        parts.append(str(node))
    yield from _block(current, parts, exact)


def _block(tag: Any, parts: list[str], exact: bool) -> Iterator[Block]:
    text = clean("".join(parts))
    text = text.strip("\n") if exact else "\n".join(" ".join(t.split()) for t in text.split("\n\n"))
    if not text.strip():
        return
    name = tag.name or ""
    heading = int(name[1]) if len(name) == 2 and name[0] == "h" and name[1].isdigit() else 0
    yield Block(text, line=tag.sourceline, end_line=tag.sourceline, heading=heading)
