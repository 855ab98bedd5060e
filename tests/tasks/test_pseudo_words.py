"""Pseudo-words: what is merged, what is remembered; docstrings by topic."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from gradatim.tasks.docstrings import docstring_topics
from gradatim.tasks.pseudo_words import pseudo_words


def documents(seed=0):
    rng = np.random.default_rng(seed)
    return [[f"w{j}" for j in rng.integers(0, 30, 25)] for _ in range(60)]


def test_occurrences_tell_which_word_stood_there():
    texts = documents()
    made = pseudo_words(texts, 5, seed=1, counts=(30, 100))
    assert len(made.occurrences) == 5
    merged = set()
    for token, occurrences in made.occurrences.items():
        pair = token.split("+")
        merged |= set(pair)
        for o in occurrences:
            assert texts[o.document][o.position] == pair[o.sense]
            assert made.documents[o.document][o.position] == token
        frequency = Counter(word for text in texts for word in text)
        assert len(occurrences) == sum(frequency[word] for word in pair)
    assert len(merged) == 10
    for text, changed in zip(texts, made.documents, strict=True):
        assert [w for w in text if w not in merged] == [w for w in changed if "+" not in w]


def test_seed_decides_and_contexts_leave_the_word_out():
    texts = documents()
    one, again, other = (pseudo_words(texts, 5, seed=s, counts=(30, 100)) for s in (1, 1, 2))
    assert one == again
    assert one.occurrences.keys() != other.occurrences.keys()
    token, occurrences = next(iter(one.occurrences.items()))
    o = next(o for o in occurrences if 3 <= o.position <= 20)
    text = one.documents[o.document]
    assert one.context(o, 2) == [text[o.position + k] for k in (-2, -1, 1, 2)]
    with pytest.raises(ValueError, match="20 pairs need 40 words that occur 30 to 100 times"):
        pseudo_words(texts, 20, seed=1, counts=(30, 100))
    assert token in text


def test_docstrings_by_topic():
    data = docstring_topics(("numpy",), least_documents=60)
    assert all(name.startswith("numpy.") for name in data.names)
    assert len(data.documents) == len(data.labels)
    assert np.bincount(data.labels).min() >= 60
    assert all(20 <= len(d) <= 200 for d in data.documents)
    with pytest.raises(ValueError, match="no topic of numpy has 100000 documents"):
        docstring_topics(("numpy",), least_documents=100_000)
