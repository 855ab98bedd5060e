"""Where a passage says what the question says, and the stretch of it to show."""

from __future__ import annotations

from collections.abc import Collection

from gradatim.inference.search.words import terms_of

Span = tuple[int, int]


def highlights(text: str, terms: Collection[str]) -> list[Span]:
    """Stretches of `text` that stand for one of the terms, in order and apart from one another."""
    wanted = set(terms)
    spans: list[Span] = []
    for term, start, end in terms_of(text):
        if term not in wanted:
            continue
        if spans and start <= spans[-1][1]:
            spans[-1] = (min(spans[-1][0], start), max(spans[-1][1], end))
        else:
            spans.append((start, end))
    return spans


def excerpt(text: str, spans: list[Span], width: int = 400) -> Span:
    """The stretch of at most `width` characters that shows most highlights, cut between words."""
    if len(text) <= width:
        return 0, len(text)
    best, begin = -1, 0
    for start, _ in spans or [(0, 0)]:
        left = max(0, min(start - width // 6, len(text) - width))
        shown = sum(left <= a and b <= left + width for a, b in spans)
        if shown > best:
            best, begin = shown, left
    end = min(len(text), begin + width)
    while begin > 0 and begin < end and not text[begin - 1].isspace():
        begin += 1
    while end < len(text) and end > begin + width // 2 and not text[end].isspace():
        end -= 1
    return begin, end
