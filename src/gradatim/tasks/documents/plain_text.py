"""Plain text and reStructuredText: paragraphs between blank lines, headings by their underline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from gradatim.tasks.documents.decoding import decode
from gradatim.tasks.documents.passages import Block, Passage, pack, paragraphs

_RULE = re.compile(r"([=\-~^*#+\"'`:.])\1{2,}\s*")
_LONGEST_HEADING = 120


def read_text(data: bytes, name: str) -> Iterator[Passage]:
    """Passages of a text file, titled by its underlined headings, else by its name."""
    blocks = list(_with_headings(decode(data)))
    first = blocks[0] if blocks else None
    if first and first.heading:
        yield from pack(blocks[1:] if len(blocks) > 1 else blocks, first.text)
    else:
        yield from pack(blocks, name)


def _with_headings(text: str) -> Iterator[Block]:
    """Paragraphs, with an underlined first line (and an overline) as a block of its own."""
    for block in paragraphs(text):
        yield from _split(block)


def _split(block: Block) -> Iterator[Block]:
    lines = block.text.split("\n")
    over = 1 if len(lines) >= 3 and _RULE.fullmatch(lines[0]) else 0
    if len(lines) >= over + 2 and _is_heading(lines[over], lines[over + 1]):
        taken = lines[: over + 2]
        assert block.line is not None
        assert block.start is not None
        length = len("\n".join(taken))
        yield Block(
            lines[over].strip(), block.line, block.line + over + 1, None, block.start, block.start + length, 1
        )
        if rest := "\n".join(lines[over + 2 :]):
            start = block.start + length + 1
            yield from _split(replace(block, text=rest, line=block.line + over + 2, start=start))
    else:
        yield block


def _is_heading(line: str, rule: str) -> bool:
    """A short line with an underline about as long as itself (a table's rule is longer than its cell)."""
    length = len(line.rstrip())
    return (
        0 < len(line.strip()) <= _LONGEST_HEADING
        and bool(_RULE.fullmatch(rule))
        and abs(len(rule.rstrip()) - length) <= max(2, length // 3)
        and not _RULE.fullmatch(line)
    )
