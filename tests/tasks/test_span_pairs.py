"""Training pairs: drawn with the stated probabilities, and batched so that only targets are learnt."""

from __future__ import annotations

import difflib
from collections import Counter

import numpy as np
import pytest
import torch

from gradatim.tasks import Pair, PairCollator, SpanPairs, span_pairs, unsupervised_pairs
from gradatim.tasks.span_pairs import allowed_starts, span_probabilities, title_pairs
from tiny_causal_lm import tiny_llama, tiny_tokenizer
from tiny_seq2seq import tiny_bart

PASSAGE = (
    "The matrix is solved by pivoting rows of a dense system until no row remains above the diagonal of it"
)


def indel_ratio(a, b):
    """2 LCS / (|a| + |b|), by the table of the longest common subsequence."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return 2 * table[-1, -1] / (len(a) + len(b))


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_spans_are_drawn_with_the_probabilities_of_the_rule(temperature):
    query, words, length = "How to solve a Dense System", PASSAGE.split(), 5
    asked = [" ".join(query.lower().split()[i : i + 3]) for i in range(4)]
    stops = {"the", "is", "by", "of", "a", "until", "no", "above", "it"}
    scores = []
    for i in range(len(words) - length + 1):
        there = " ".join(words[i : i + 3]).lower()
        total = sum(indel_ratio(t, there) for t in asked)
        scores.append(0.0 if words[i].lower() in stops else np.exp(total / temperature))
    expected = np.array(scores) / sum(scores)
    found = span_probabilities(query, words, length, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    pairs = span_pairs(query, PASSAGE, 4000, length, temperature, np.random.default_rng(0))
    drawn = Counter(pair.target for pair in pairs)
    for i, p in enumerate(expected):
        assert drawn[" ".join(words[i : i + length])] / 4000 == pytest.approx(p, abs=0.03)
    assert {pair.source for pair in pairs} == {"How to solve a Dense System || body || +"}
    assert {len(pair.target.split()) for pair in pairs} == {length}


def test_colder_draws_prefer_what_the_query_says():
    words = PASSAGE.split()
    warm, cold = (span_probabilities("a dense system", words, 5, t) for t in (1.0, 0.05))
    likeliest = int(np.argmax(cold))
    assert words[likeliest] in {"dense", "system"}
    assert cold[likeliest] > warm[likeliest]
    # The ratio is no edit distance of another kind: difflib's is the same idea.
    assert difflib.SequenceMatcher(None, "a dense system", "dense system until").ratio() > 0.6


def test_short_passages_and_passages_of_stop_words():
    assert span_pairs("q", "one two", n=2)[0].target == "one two"
    assert allowed_starts(["the", "of", "and"], 1).tolist() == [True] * 3
    assert allowed_starts(["the", "matrix", "(of"], 1).tolist() == [False, True, False]
    assert allowed_starts(["end.", "matrix"], 1, sentence_ends=True).tolist() == [False, True]
    assert span_pairs("", "alpha beta gamma", n=1, length=2)[0].target in ("alpha beta", "beta gamma")
    for arguments, message in (
        (("q", "  "), "the passage has no words"),
        (("q", "a", 0), "at least 1"),
        (("q", "a", 1, 1, 0.0), "temperature above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            span_pairs(*arguments)


def test_unsupervised_pairs_of_a_passage_with_and_without_a_title():
    rng = np.random.default_rng(0)
    words = PASSAGE.split()
    spans = {" ".join(words[i : i + 10]) for i in range(len(words) - 9)}
    lowered = total = turned = 0
    for _ in range(200):
        pairs = unsupervised_pairs(PASSAGE, "Linear Systems", rng)
        assert len(pairs) == 5
        for pair in pairs[:3]:
            source = pair.source.removesuffix(" || p").split()
            assert len(source) == 10
            assert {w.lower() for w in source} <= {w.lower() for w in words}
            assert pair.target in spans
            assert pair.target.split()[0].lower() not in {"the", "is", "by", "of", "a", "until", "no"}
        turned += pairs[3].target == "Linear Systems @@"
        assert pairs[3].target in {*spans, "Linear Systems @@"}
        assert pairs[4].target == "Linear Systems @@"
        lowered += sum(pair.source == pair.source.lower() and "The" in PASSAGE for pair in pairs[4:])
        total += 1
    assert 0.02 < lowered / total < 0.2
    assert 0.35 < turned / total < 0.65
    assert len(unsupervised_pairs(PASSAGE, rng=rng)) == 3
    assert title_pairs("q", "T") == [Pair("q || title || +", "T @@")] * 3


def test_dataset_draws_by_seed_epoch_and_place():
    passages = {
        "a": PASSAGE,
        "b": "Random numbers are drawn from a generator with a seed of its own each time",
    }
    titles = {"a": "Systems"}
    data = SpanPairs([("solve", "a"), ("random", "b")], passages, titles, seed=3)
    assert len(data) == (10 + 3) + 10 + 5 + 3
    first = [data[i] for i in range(len(data))]
    backwards = [
        SpanPairs([("solve", "a"), ("random", "b")], passages, titles, seed=3)[i] for i in (30, 5, 12)
    ]
    assert backwards == [first[30], first[5], first[12]]
    assert [p.target for p in first[10:13]] == ["Systems @@"] * 3
    assert all(p.source.endswith("|| p") for p in first[23:])
    data.set_epoch(1)
    assert [data[i] for i in range(len(data))] != first
    data.set_epoch(0)
    assert [data[i] for i in range(len(data))] == first
    with pytest.raises(KeyError, match="'c', which is not in passages"):
        SpanPairs([("q", "c")], passages)
    with pytest.raises(ValueError, match="no pairs"):
        SpanPairs([], passages, unsupervised=False)
    with pytest.raises(IndexError, match="pair 31, but there are 31"):
        data[31]


def test_only_targets_are_learnt_and_training_fits_them():
    tokenizer = tiny_tokenizer()
    pairs = [Pair("good music", "poor film"), Pair("book", "great trip was fine")]
    for model, encoder_decoder in (
        (tiny_llama(dtype=torch.float32), False),
        (tiny_bart(dtype=torch.float32), True),
    ):
        batch = PairCollator(tokenizer, encoder_decoder=encoder_decoder)(pairs)
        learnt = [[t for t in row.tolist() if t != -100] for row in batch["labels"]]
        assert learnt == [tokenizer.encode(pair.target) for pair in pairs]
        if not encoder_decoder:
            assert batch["labels"].shape == batch["input_ids"].shape
            assert (batch["labels"][0, :2] == -100).all()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        model.train()
        losses = []
        for _ in range(30):
            loss = model(**batch).loss
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[-1] < 0.5 * losses[0]
    cut = PairCollator(tokenizer, max_source=1, max_target=2)(pairs)
    assert cut["attention_mask"].sum(1).tolist() == [3, 3]
