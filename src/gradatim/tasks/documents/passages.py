"""Blocks of a document packed into passages of a hundred to a hundred and fifty words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

MOST_WORDS = 150
"""A passage never holds more words, unless one block cannot be cut."""

FEWEST_WORDS = 50
"""A shorter passage goes on across a heading."""

MOST_CHARS = 1200
"""Bounds passages in scripts without blanks, and lines that are no prose."""

MOST_TITLE_CHARS = 200


@dataclass(frozen=True)
class Block:
    """A paragraph, heading or other piece that reads as one, and where it stands.

    `start` and `end` count characters of the decoded file (line ends as one character), `line` and `end_line`
    from 1, `page` from 1; None where the format has no such place. `heading` is 0 for a body block, else the
    heading's level from 1.
    """

    text: str
    line: int | None = None
    end_line: int | None = None
    page: int | None = None
    start: int | None = None
    end: int | None = None
    heading: int = 0


@dataclass(frozen=True)
class Passage:
    """What a search finds: a stretch of a file under a title, and where it stands (as in `Block`)."""

    title: str
    text: str
    line: int | None = None
    end_line: int | None = None
    page: int | None = None
    start: int | None = None
    end: int | None = None


class UnreadableError(ValueError):
    """A file that cannot be read as what it says it is; the message is a short reason."""


def pack(blocks: Iterable[Block], title: str = "") -> list[Passage]:
    """Join neighbouring blocks up to 150 words; the title is the document's and that of the section.

    A passage ends before the block that would make it too long, at a new page, and at a heading once it
    holds 50 words. A block that is too long by itself is cut at the ends of sentences, else between words.
    """
    passages: list[Passage] = []
    waiting: list[Block] = []
    section = waiting_section = ""

    def close() -> None:
        nonlocal waiting
        # A heading with nothing below it, or that opens the passage, says what the title says.
        if any(not block.heading for block in waiting):
            said = join_titles(title, waiting_section)
            while waiting[0].heading and waiting[0].text.strip() in said:
                waiting = waiting[1:]
            while waiting[-1].heading:  # it titles what comes next
                waiting = waiting[:-1]
            passages.append(_joined(waiting, said))
        waiting = []

    for block in blocks:
        if not block.text.strip():
            continue
        if block.heading:
            section = " ".join(block.text.split())[:MOST_TITLE_CHARS]
            if sum(_words(b.text) for b in waiting) >= FEWEST_WORDS:
                close()
        for piece in _cut(block):
            full = sum(_words(b.text) for b in [*waiting, piece]) > MOST_WORDS or (
                sum(len(b.text) + 2 for b in [*waiting, piece]) > MOST_CHARS
            )
            if waiting and (full or waiting[-1].page != piece.page):
                close()
            if not waiting:
                waiting_section = section
            waiting.append(piece)
            if all(b.heading for b in waiting):
                waiting_section = section
    close()
    return passages


def join_titles(document: str, section: str) -> str:
    """ "Document › Section", without saying the same twice."""
    document = " ".join(document.split())[:MOST_TITLE_CHARS]
    if not section or section == document:
        return document
    return f"{document} › {section}" if document else section


def paragraphs(text: str, first_line: int = 1, offset: int = 0, page: int | None = None) -> Iterator[Block]:
    """Runs of lines between blank lines, with their places."""
    lines: list[str] = []
    begin = at = offset
    number = first_line
    for line in text.split("\n"):
        if line.strip():
            if not lines:
                begin = at
            lines.append(line)
        elif lines:
            yield _paragraph(lines, begin, number, page)
            lines = []
        at += len(line) + 1
        number += 1
    if lines:
        yield _paragraph(lines, begin, number, page)


def _paragraph(lines: Sequence[str], begin: int, after: int, page: int | None) -> Block:
    body = "\n".join(lines)
    return Block(body, after - len(lines), after - 1, page, begin, begin + len(body))


def _joined(blocks: Sequence[Block], title: str) -> Passage:
    first, last = blocks[0], blocks[-1]
    return Passage(
        title,
        "\n\n".join(b.text.strip("\n").rstrip() for b in blocks),
        first.line,
        last.end_line,
        first.page,
        first.start,
        last.end,
    )


def _words(text: str) -> int:
    return len(text.split())


def _cut(block: Block) -> Iterator[Block]:
    """The block itself where it is short enough, else pieces of it that are."""
    if _words(block.text) <= MOST_WORDS and len(block.text) <= MOST_CHARS:
        yield block
        return
    text = block.text
    begin = words = 0
    good = 0  # the last end of a sentence or line in sight
    for match in re.finditer(r"\S+", text):
        if match.end() - begin > MOST_CHARS or words >= MOST_WORDS:
            if match.start() > begin:
                cut = good if good > begin + (match.start() - begin) // 2 else match.start()
                yield _piece(block, begin, cut)
                begin = cut
                words = _words(text[begin : match.start()])
            while match.end() - begin > MOST_CHARS:
                yield _piece(block, begin, begin + MOST_CHARS)
                begin += MOST_CHARS
        words += 1
        if match.group()[-1] in ".!?。！？" or text[match.end() : match.end() + 1] == "\n":
            good = match.end()
    if text[begin:].strip():
        yield _piece(block, begin, len(text))


def _piece(block: Block, begin: int, end: int) -> Block:
    text = block.text
    begin += len(text[begin:end]) - len(text[begin:end].lstrip())
    same_lines = block.line is not None and block.end_line is not None
    same_lines = same_lines and text.count("\n") == block.end_line - block.line  # type: ignore[operator]
    before = text.count("\n", 0, begin)
    inside = text.count("\n", begin, end)
    exact = block.start is not None and block.end == block.start + len(text)
    return replace(
        block,
        text=text[begin:end],
        line=block.line + before if same_lines else block.line,  # type: ignore[operator]
        end_line=block.line + before + inside if same_lines else block.end_line,  # type: ignore[operator]
        start=block.start + begin if exact else block.start,  # type: ignore[operator]
        end=block.start + end if exact else block.end,  # type: ignore[operator]
    )
