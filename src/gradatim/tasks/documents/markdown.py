"""Markdown, parsed by markdown-it: headings title what stands below them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate

from gradatim.tasks.documents.decoding import decode
from gradatim.tasks.documents.passages import Block, Passage, pack

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|$)", re.S)


def read_markdown(data: bytes, name: str) -> Iterator[Passage]:
    """Passages of a Markdown file: its words without the markup, code blocks whole."""
    text = decode(data)
    title = ""
    if front := _FRONT_MATTER.match(text):
        said = re.search(r"^title:[ \t]*(.+)$", front[1], re.M)
        title = said[1].strip().strip("\"'") if said else ""
        # Blank lines in its place keep every line's number.
        text = re.sub(r"[^\n]", " ", text[: front.end()]) + text[front.end() :]
    blocks = list(_blocks(text))
    if not title and blocks and blocks[0].heading:
        title = blocks[0].text
        blocks = blocks[1:] if len(blocks) > 1 else blocks
    yield from pack(blocks, title or name)


def _blocks(text: str) -> Iterator[Block]:
    from markdown_it import MarkdownIt

    starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    heading = 0
    place: tuple[int, int] = (0, 0)
    cells: list[str] | None = None
    # Raw HTML is read as text; nesting is bounded by the parser itself.
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.map is not None:
            place = (token.map[0], token.map[1])
        if token.type == "heading_open":
            heading = int(token.tag[1])
        elif token.type == "tr_open":
            cells = []
        elif token.type == "inline" and cells is not None:
            cells.append(_words(token))
        elif token.type in ("inline", "fence", "code_block", "html_block", "tr_close"):
            # A row of a table reads as one.
            said = " | ".join(cells) if cells is not None else _words(token)
            cells = None
            begin, end = place
            if said.strip():
                last = min(starts[end] - 1, len(text)) if end < len(starts) else len(text)
                yield Block(said, begin + 1, max(end, begin + 1), None, starts[begin], last, heading)
            heading = 0


def _words(token: object) -> str:
    kind = getattr(token, "type", "")
    content: str = getattr(token, "content", "")
    if kind == "html_block":
        return re.sub(r"<!--.*?-->|<[^<>]*>", " ", content, flags=re.S)
    if kind != "inline":
        return content
    parts = []
    for child in getattr(token, "children", None) or ():
        if child.type in ("softbreak", "hardbreak"):
            parts.append("\n")
        elif child.type not in ("html_inline",):
            parts.append(child.content)
    return "".join(parts)
