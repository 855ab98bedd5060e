"""Brackets balance, sums are right, sources are Python's: the texts that language models leave home for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.tasks.formal_text import BRACKETS, FORMAL_TEXTS, arithmetic_text, dyck_text, python_source_text


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(
    kinds=st.integers(1, 4), depth=st.integers(1, 9), seed=st.integers(0, 10**6), length=st.integers(1, 300)
)
def test_every_line_is_balanced_within_its_depth(kinds: int, depth: int, seed: int, length: int) -> None:
    text = dyck_text(length, seeded(seed), kinds=kinds, max_depth=depth)
    assert len(text) >= length
    pairs = {b[0]: b[1] for b in BRACKETS[:kinds]}
    for line in text.splitlines():
        stack: list[str] = []
        for symbol in line.split(" "):
            if symbol in pairs:
                stack.append(pairs[symbol])
                assert len(stack) <= depth
            else:
                assert symbol == stack.pop()
        assert not stack


def test_brackets_open_as_often_as_asked_and_are_of_every_kind() -> None:
    text = dyck_text(20_000, seeded(0), p_open=0.5)
    counts = [text.count(b[0]) for b in BRACKETS]
    assert max(counts) < 1.2 * min(counts)
    shallow, deep = (_mean_depth(dyck_text(5000, seeded(0), p_open=p)) for p in (0.1, 0.9))
    assert shallow < 1.5 < 3 < deep


def _mean_depth(text: str) -> float:
    depth, depths = 0, []
    for symbol in text.split():
        depth += 1 if symbol in "([{<" else -1
        depths.append(depth)
    return sum(depths) / len(depths)


def test_sums_are_right() -> None:
    lines = arithmetic_text(4000, seeded(1), max_value=99).splitlines()
    signs = set()
    for line in lines:
        a, sign, b, equals, value = line.split(" ")
        assert equals == "="
        assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(value)
        assert 0 <= int(a) <= 99
        signs.add(sign)
    assert signs == {"+", "-", "*"}


def test_sources_are_pythons() -> None:
    text = python_source_text(6000, seeded(2))
    assert len(text) == 6000
    assert "self" in text
    assert "def " in text


@pytest.mark.parametrize("name", FORMAL_TEXTS)
def test_texts_are_their_generators(name: str) -> None:
    before = torch.get_rng_state()
    a, b, c = (FORMAL_TEXTS[name](500, seeded(s)) for s in (0, 0, 1))
    assert a == b != c
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_settings_are_refused() -> None:
    for change, says in (
        ({"kinds": 5}, "kinds"),
        ({"p_open": 1.5}, "p_open"),
        ({"max_depth": 0}, "max_depth"),
    ):
        with pytest.raises(ValueError, match=says):
            dyck_text(10, seeded(0), **change)
    with pytest.raises(ValueError, match="length"):
        arithmetic_text(0, seeded(0))
    with pytest.raises(ValueError, match="length"):
        python_source_text(0, seeded(0))
