"""Every string is in its language, every label is what a recogniser by hand says."""

from __future__ import annotations

import pytest
import torch

from gradatim.tasks.formal_languages import FORMAL_LANGUAGES, LabelledStrings, exact, last_accuracy


def draw(name, count=200, lengths=(2, 30), seed=0):
    return FORMAL_LANGUAGES[name].sample(count, lengths, torch.Generator().manual_seed(seed))


def words(name, strings):
    """The strings as text, each with the meanings of its labels."""
    language = FORMAL_LANGUAGES[name]
    for row, labels, length in zip(strings.tokens, strings.labels, strings.lengths, strict=True):
        text = "".join(language.alphabet[i] for i in row[:length])
        yield text, [language.classes[i] for i in labels[:length]]


def by_hand(name, prefix, whole):
    """The label of a prefix, read off its text."""
    a, b, c = (prefix.count(symbol) for symbol in "abc")
    if name == "parity":
        return "odd" if prefix.count("1") % 2 else "even number of ones"
    if name == "(aa)*":
        return "even length" if a % 2 == 0 else "odd length"
    if name == "(abab)*":
        return ("a or end" if len(prefix) % 4 == 0 else "a") if prefix[-1] == "b" else "b"
    if name == "a^n b^n":
        return "a or b" if b == 0 else ("end" if a == b else "b")
    if name == "a^n b^n c^n":
        if b == 0:
            return "a or b"
        return "b" if b < a else ("c" if c < a else "end")
    free = [close for opening, close in ("()", "[]") if prefix.count(opening) > prefix.count(close)]
    return " or ".join(free) or "none"


def in_language(name, text):
    n = len(text)
    if name == "parity":
        return set(text) <= {"0", "1"}
    if name == "(aa)*":
        return text == "a" * n
    if name == "(abab)*":
        return n % 4 == 0 and text == "ab" * (n // 2)
    if name == "a^n b^n":
        return text == "a" * (n // 2) + "b" * (n // 2)
    if name == "a^n b^n c^n":
        return text == "a" * (n // 3) + "b" * (n // 3) + "c" * (n // 3)
    for opening, close in ("()", "[]"):
        depth = 0
        for symbol in text:
            depth += (symbol == opening) - (symbol == close)
            if depth < 0:
                return False
        if depth:
            return False
    return True


@pytest.mark.parametrize("name", FORMAL_LANGUAGES)
def test_strings_and_labels(name):
    strings = draw(name)
    assert strings.lengths.min() >= 2
    assert strings.lengths.max() <= 30
    assert len(strings.lengths.unique()) > 5
    for text, labels in words(name, strings):
        assert in_language(name, text)
        assert labels == [by_hand(name, text[: i + 1], text) for i in range(len(text))]
    assert torch.equal(strings.mask.sum(1), strings.lengths)
    assert (strings.tokens[~strings.mask] == 0).all()
    seen = set(strings.labels[strings.mask].tolist())
    assert seen == set(range(len(FORMAL_LANGUAGES[name].classes)))


@pytest.mark.parametrize("name", FORMAL_LANGUAGES)
def test_a_seed_gives_the_same_strings_and_leaves_the_global_state_alone(name):
    before = torch.random.get_rng_state()
    one, two = draw(name, seed=3), draw(name, seed=3)
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(before, torch.random.get_rng_state())


def test_measures_by_hand():
    labels = torch.tensor([[0, 1, 1, 0], [1, 1, -100, -100], [0, 0, 0, -100]])
    strings = LabelledStrings(torch.zeros_like(labels), labels, torch.tensor([4, 2, 3]))
    predictions = torch.tensor([[0, 1, 1, 0], [1, 1, 7, 7], [1, 0, 0, 0]])
    assert exact(predictions, strings).tolist() == [1, 1, 0]
    assert last_accuracy(predictions, strings, 2).tolist() == [1, 1, 1]
    assert last_accuracy(predictions, strings, 8).tolist() == pytest.approx([1, 1, 2 / 3])


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="multiples of 4"):
        draw("(abab)*", lengths=(5, 7))
    with pytest.raises(ValueError, match="at least 1"):
        draw("parity", count=0)
