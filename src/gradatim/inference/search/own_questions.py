"""Questions a folder answers about itself: a passage's first sentence, with the rest as its answer."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence

from gradatim.inference.search.passages import StoredPassage

FEWEST_WORDS, MOST_WORDS = 4, 30
SHORTEST_REST = 15


def own_question(passage: StoredPassage) -> tuple[str, str] | None:
    """The first sentence, and the passage without it (its title stays); None where that leaves too little."""
    match = re.match(r"\s*(.+?[.!?:。])(?:\s+|$)(.*)", passage.text, re.S)
    if not match:
        return None
    question, rest = " ".join(match[1].split()), match[2].strip()
    words = len(question.split())
    if not FEWEST_WORDS <= words <= MOST_WORDS or len(rest.split()) < SHORTEST_REST:
        return None
    return question, f"{passage.title}\n{rest}" if passage.title else rest


def own_questions(passages: Sequence[StoredPassage], most: int) -> list[tuple[int, str, str]]:
    """At most `most` passages with a question: row, question, answer; drawn by their text alone."""
    found = [(row, *pair) for row, passage in enumerate(passages) if (pair := own_question(passage))]
    found.sort(key=lambda entry: (zlib.crc32(entry[1].encode("utf-8", "replace")), entry[1], entry[2]))
    kept = found[:most]
    random.Random(0).shuffle(kept)
    return kept
