"""Text into the terms that search by words counts, each with its place for highlighting.

A term is a run of letters and digits in lower case (NFKC, case folded), without an English plural's ending;
an identifier counts whole and in its parts (`least_squares`, `least`, `square`); scripts without blanks
between words (Chinese, Japanese, Thai ...) are cut into overlapping pairs of characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

STOP_WORDS = frozenset({
    "a", "about", "all", "am", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by", "can",
    "could", "did", "do", "does", "for", "from", "had", "has", "have", "how", "i", "if", "in", "into",
    "is", "it", "its", "me", "my", "no", "not", "of", "on", "or", "our", "shall", "should", "so",
    "such", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "those",
    "to", "was", "we", "were", "what", "when", "where", "which", "who", "whom", "why", "will", "with",
    "would", "you", "your",
})  # fmt: skip

LONGEST_TERM = 64

_WORD = re.compile(r"\w+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Scripts that are written without blanks between words.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)


class Term(NamedTuple):
    """A term and the characters of the text it stands for."""

    term: str
    start: int
    end: int


def terms_of(text: str) -> Iterator[Term]:
    """All terms of a text in order, stop words among them."""
    for match in _WORD.finditer(text):
        word = match.group()
        if not word.isascii() and _UNSPACED.search(word):
            yield from _unspaced(word, match.start())
        else:
            yield from _identifier(word, match.start())


def words_of(text: str) -> list[str]:
    """The terms alone."""
    return [term for term, _, _ in terms_of(text)]


def query_words(text: str) -> list[str]:
    """The terms of a question without stop words, each once; with them where there is nothing else."""
    words = list(dict.fromkeys(words_of(text)))
    telling = [word for word in words if word not in STOP_WORDS]
    return telling or words


def _identifier(word: str, at: int) -> Iterator[Term]:
    if len(word) > LONGEST_TERM:
        return
    yield Term(_normal(word), at, at + len(word))
    if "_" in word or not (word.islower() or word.isupper() or word.istitle() or word.isdigit()):
        begin = 0
        pieces: list[tuple[str, int]] = []
        for piece in re.split(r"(_+)", word):
            if piece and not piece.startswith("_"):
                inner = begin
                for part in _CAMEL.split(piece):
                    pieces.append((part, inner))
                    inner += len(part)
            begin += len(piece)
        if len(pieces) > 1 or (pieces and pieces[0][0] != word):
            for part, offset in pieces:
                yield Term(_normal(part), at + offset, at + offset + len(part))


def _unspaced(word: str, at: int) -> Iterator[Term]:
    end = 0
    for run in _UNSPACED.finditer(word):
        if run.start() > end:
            yield from _identifier(word[end : run.start()], at + end)
        text = run.group()
        if len(text) == 1:
            yield Term(_normal(text), at + run.start(), at + run.end())
        for i in range(len(text) - 1):
            yield Term(_normal(text[i : i + 2]), at + run.start() + i, at + run.start() + i + 2)
        end = run.end()
    if end < len(word):
        yield from _identifier(word[end:], at + end)


@lru_cache(maxsize=200_000)
def _normal(word: str) -> str:
    if not word.isascii():
        word = unicodedata.normalize("NFKC", word)
    word = word.casefold()
    return _singular(word) if word.isascii() and len(word) > 3 and word[-1] == "s" else word


def _singular(word: str) -> str:
    """Harman's S stemmer ("How effective is suffixing?", 1991): three rules for English plurals."""
    if word.endswith("ies") and word[-4] not in "ae":
        return word[:-3] + "y"
    if word.endswith("es") and word[-3] not in "aeo":
        return word[:-1]
    return word if word.endswith(("us", "ss", "is")) else word[:-1]
