"""Concepts against a recursive evaluator, exact counts, a hold-out that holds, and draws that are uniform."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from gradatim.tasks import (
    Concept,
    ConceptGrammar,
    ConceptTasks,
    LinearRegressionTask,
    Tasks,
    context_generator,
    parse_concept,
    tasks_of_contexts,
)
from gradatim.tasks.concept_examples import _repeated, draw_examples
from gradatim.tasks.concepts import AND, NOT, OR, cube, table_size


def recursive(program, row):
    """The value of a postfix program on one row, and what is left of the program: read from its end."""
    *rest, code = program
    if code >= 0:
        return bool(row[code // 2]) != bool(code % 2), rest
    right, rest = recursive(rest, row)
    if code == NOT:
        return not right, rest
    left, rest = recursive(rest, row)
    return (left and right) if code == AND else (left or right), rest


grammars = st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(0, 10**6))


@given(grammars)
@settings(max_examples=60, deadline=None)
def test_tables_and_evaluation_are_those_of_a_recursive_evaluator(settings_):
    concept = ConceptGrammar(*settings_[:2], seed=settings_[2]).sample()
    rows = list(itertools.product((0, 1), repeat=concept.n_features))
    wanted = [recursive(concept.program, row)[0] for row in rows]
    x = torch.tensor(rows, dtype=torch.float32)
    assert concept.evaluate(x).tolist() == wanted
    assert concept.evaluate(2 * x - 1).tolist() == wanted
    places = [sum(bit << f for f, bit in enumerate(row)) for row in rows]
    assert concept.truth_table()[places].tolist() == wanted
    assert torch.equal(concept.evaluate(cube(concept.n_features)), concept.truth_table())
    assert concept.density == sum(wanted) / len(rows)


@given(grammars)
@settings(max_examples=60, deadline=None)
def test_writing_and_parsing_give_the_same_program(settings_):
    concept = ConceptGrammar(*settings_[:2], seed=settings_[2]).sample()
    assert parse_concept(str(concept), concept.n_features) == concept


def test_size_and_depth():
    concept = parse_concept("x1 & (~x3 | ~(x2)) & x1")
    assert concept.n_features == 3
    assert concept.n_literals == 4
    assert concept.depth == 5  # and, and, or, not, x2
    assert concept.features == (0, 1, 2)
    assert parse_concept("x4").depth == 1
    assert parse_concept("not x1 and x2 or x3") == parse_concept("(~x1 & x2) | x3")
    assert parse_concept("x1 | x2 & x3").program == (0, 2, 4, AND, OR)


def test_equal_meaning_has_one_hash():
    for features in (3, 16, 20, 40):
        same = ["x1 & x2", "~(~x1 | ~x2)", "x2 & x1 & (x3 | ~x3)"]
        hashes = {parse_concept(text, features).canonical_hash() for text in same}
        assert len(hashes) == 1
        assert parse_concept("x1 & x3", features).canonical_hash() not in hashes
    # The same formula over another number of features is another concept.
    assert parse_concept("x1", 8).canonical_hash() != parse_concept("x1", 9).canonical_hash()
    assert table_size(40) == 65_536
    assert parse_concept("x1 & x20", 20).density == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x1 &", "ends where"), ("x1 x2", "position 3: expected an operator"), ("(x1", "never closed"),
        ("x1)", "never opened"), ("x0", "does not exist"), ("x9", "only x1 to x8"), ("y1", "literals are"),
        ("x1 & & x2", "position 5"), ("x1 + x2", "cannot read"), ("", "ends where"), ("()", "position 1"),
        ("__import__('os')", "cannot read"),
    ],
)  # fmt: skip
def test_unreadable_concepts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_concept(text, 8)


def test_broken_programs_and_grammars_are_refused():
    for program, message in (((0, 2), "not one formula"), ((AND,), "lacks"), ((16,), "x9"), ((), "not one")):
        with pytest.raises(ValueError, match=message):
            Concept(8, program)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ConceptGrammar(0)
    with pytest.raises(ValueError, match="got -1"):
        ConceptGrammar(8, -1)
    with pytest.raises(ValueError, match="sum to 1"):
        ConceptGrammar(8, probs=(0.5, 0.5, 0.2, 0.3))
    with pytest.raises(ValueError, match="never end"):
        ConceptGrammar(8, None, probs=(0.5, 0.5, 0.0, 0.0))
    with pytest.raises(ValueError, match="at most 16"):
        parse_concept("x1", 17).truth_table()
    with pytest.raises(ValueError, match="reads 8 features"):
        parse_concept("x1", 8).evaluate(torch.zeros(3, 7))


def test_the_grammar_has_its_probabilities():
    grammar = ConceptGrammar(8, 1, seed=3)
    found = Counter(
        {AND: "and", OR: "or", NOT: "not"}.get(grammar.sample().program[-1], "literal") for _ in range(20_000)
    )
    for name, share in (("or", 0.25), ("and", 0.25), ("not", 0.2), ("literal", 0.3)):
        assert found[name] / 20_000 == pytest.approx(share, abs=0.012)  # four standard errors
    leaves = Counter(ConceptGrammar(3, 0).sample(random.Random(s)).program[0] for s in range(6000))
    assert sorted(leaves) == list(range(6))
    assert min(leaves.values()) > 850
    # E[literals] of depth D: L_D = 0.3 + 1.2 L_{D-1}, L_0 = 1.
    for depth, mean in ((1, 1.5), (3, 2.82), (5, 4.7208)):
        grammar = ConceptGrammar(8, depth)
        drawn = [grammar.sample() for _ in range(20_000)]
        assert np.mean([c.n_literals for c in drawn]) == pytest.approx(mean, rel=0.03)
        assert max(c.depth for c in drawn) == depth + 1
    unbounded = ConceptGrammar(8, None, probs=(0.1, 0.1, 0.2, 0.6))
    assert max(unbounded.sample().n_literals for _ in range(2000)) > 4


@pytest.mark.parametrize("features", [5, 8, 14, 16, 20, 33, 70])
def test_labels_are_right_balanced_and_inputs_never_repeat(features):
    stream = ConceptTasks(ConceptGrammar(features, 4), tasks=20, support=(3, 4), query=(5, 2), seed=features)
    tasks = stream.batch(3)
    assert tasks.xs_s.shape == (20, 7, features)
    assert tasks.ys_q.shape == (20, 7)
    assert (tasks.ys_s.sum(1) == 3).all()
    assert (tasks.ys_q.sum(1) == 5).all()
    assert set(tasks.xs_s.unique().tolist()) == {-1.0, 1.0}
    for t, concept in enumerate(tasks.meta):
        rows = torch.cat([tasks.xs_s[t], tasks.xs_q[t]])
        assert torch.equal(concept.evaluate(rows).float(), torch.cat([tasks.ys_s[t], tasks.ys_q[t]]))
        assert len(rows.unique(dim=0)) == len(rows)
    # Labels are in no fixed place.
    assert 0 < float(tasks.ys_s[:, 0].mean()) < 1


@pytest.mark.parametrize(("features", "draws"), [(4, 3000), (12, 600)])
def test_examples_are_uniform_among_their_label(features, draws):
    # Of two features: the low byte decides, so at 12 features each positive input has many twins.
    concept = parse_concept("x1 & x2", features)
    rng = np.random.default_rng(0)
    pos, neg, lacks = draw_examples([concept] * draws, 4, 2, rng)
    assert not any(lacks)
    weights = 1 << np.arange(4)
    found = Counter((pos[:, :, :4] @ weights).ravel().tolist())
    assert sorted(found) == [3, 7, 11, 15]
    if features == 4:
        assert set(found.values()) == {draws}  # only four positives exist: each comes once
        counts = np.array(sorted(Counter((neg @ weights).ravel().tolist()).values()))
        assert len(counts) == 12
        assert abs(counts - draws / 6).max() < 5 * np.sqrt(draws / 6)
    else:
        assert abs(np.array(list(found.values())) - draws).max() < 5 * np.sqrt(draws)
    assert not concept.evaluate(torch.from_numpy(neg)).any()


def test_rare_positives_are_found_exactly_or_said_to_lack():
    rng = np.random.default_rng(1)
    rare = parse_concept(" & ".join(f"x{k}" for k in range(1, 14)), 16)  # 8 of 65,536 inputs
    pos, _, lacks = draw_examples([rare], 8, 3, rng)
    assert lacks == [""]
    assert rare.evaluate(torch.from_numpy(pos)).all()
    assert len(np.unique(pos[0], axis=0)) == 8
    assert draw_examples([rare], 9, 3, rng)[2] == ["8 positive inputs, 9 are needed"]
    wide = parse_concept(" & ".join(f"x{k}" for k in range(1, 25)), 32)
    assert "too few positive inputs among 2560 drawn" in draw_examples([wide], 5, 5, rng)[2][0]
    impossible = parse_concept("x1 & ~x1", 5)
    assert draw_examples([impossible], 1, 1, rng)[2] == ["0 positive inputs, 1 are needed"]


def test_repeated_rows_are_seen():
    rows = torch.tensor([[0, 1], [1, 1], [0, 1], [0, 0], [1, 1], [0, 1]]).bool().numpy()[None]
    assert _repeated(rows).tolist() == [[False, False, True, False, True, True]]


def test_splits_hold_out_by_meaning_and_share_out_the_literals():
    grammar = ConceptGrammar(8, 3)
    drawn = {
        split: {c.canonical_hash() for c in ConceptTasks(grammar, split=split, tasks=300).batch(0).meta}
        for split in ("train", "valid", "test")
    }
    assert not drawn["train"] & drawn["test"]
    assert not drawn["valid"] & drawn["test"]
    assert not drawn["train"] & drawn["valid"]
    for salt in range(5):
        stream = ConceptTasks(grammar, split_seed=salt, shares=(0.5, 0.25, 0.25))
        found = Counter(stream.split_of(Concept(8, (code,))) for code in range(16))
        assert found == {"train": 8, "valid": 4, "test": 4}
        # A formula that says a literal goes where the literal goes.
        assert stream.split_of(parse_concept("~(~x5)", 8)) == stream.split_of(parse_concept("x5", 8))
    first, second = (ConceptTasks(grammar, split_seed=s) for s in (0, 1))
    some = [grammar.sample() for _ in range(200)]
    assert [first.split_of(c) for c in some] != [second.split_of(c) for c in some]


def test_batches_depend_on_their_key_alone_and_resume():
    def equal(a, b):
        return torch.equal(a.xs_s, b.xs_s) and torch.equal(a.ys_q, b.ys_q) and a.meta == b.meta

    stream = ConceptTasks(ConceptGrammar(8), tasks=3, seed=5)
    run = iter(stream)
    first = [next(run) for _ in range(3)]
    other = ConceptTasks(ConceptGrammar(8), tasks=3, seed=5)
    assert equal(other.batch(2), first[2])
    assert not equal(first[0], first[1])
    other.load_state_dict(stream.state_dict())
    assert equal(next(iter(other)), next(run))
    assert not equal(ConceptTasks(ConceptGrammar(8), tasks=3, seed=5, rank=1).batch(0), first[0])
    with pytest.raises(ValueError, match="another coding, tasks"):
        ConceptTasks(ConceptGrammar(8), tasks=4, coding="binary", seed=5).load_state_dict(stream.state_dict())
    loaded = next(iter(DataLoader(ConceptTasks(ConceptGrammar(8), tasks=3, seed=5), batch_size=None)))
    assert equal(loaded, first[0])


def test_a_pool_is_visited_once_per_epoch():
    stream = ConceptTasks(ConceptGrammar(8), tasks=4, pool_size=12, seed=2)
    epochs = [[stream.batch(3 * e + k) for k in range(3)] for e in range(2)]
    keys = [[tuple(x.flatten().tolist()) for b in epoch for x in b.xs_s] for epoch in epochs]
    assert sorted(keys[0]) == sorted(keys[1])
    assert len(set(keys[0])) == 12
    assert keys[0] != keys[1]


def test_rejections_are_counted_and_explained():
    stream = ConceptTasks(ConceptGrammar(8, 3), tasks=400)
    stream.batch(0)
    # About 7% at eight features and depth 3, nearly all of them constant.
    assert 0.03 < stream.rejection_rate < 0.12
    assert stream.rejections.constant > stream.rejections.too_few
    hopeless = ConceptTasks(ConceptGrammar(4, 0), support=(4, 1), query=(5, 1))
    with pytest.raises(ValueError, match=r"the concept ~?x\d has 8 positive inputs, 9 are needed"):
        hopeless.batch(0)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"tasks": 0}, "tasks must be at least 1"), ({"support": (5, 0)}, "both labels"),
        ({"split": "dev"}, "split must be"), ({"shares": (0.5, 0.1, 0.1)}, "sum to 1"),
        ({"seed": -1}, "negative"), ({"coding": "gray"}, "coding"), ({"support": (200, 200)}, "do not fit"),
        ({"query": (100, 100), "support": (200, 1)}, "do not fit"), ({"pool_size": 0}, "pool_size"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(settings_, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ConceptTasks(ConceptGrammar(8), **settings_)


def test_tasks_move_index_and_come_from_contexts():
    tasks = ConceptTasks(ConceptGrammar(8), tasks=5, coding="binary").batch(0)
    assert set(tasks.xs_q.unique().tolist()) == {0.0, 1.0}
    assert tasks.to(dtype=torch.float64).xs_s.dtype == torch.float64
    assert tasks[1:3].meta == tasks.meta[1:3]
    assert torch.equal(tasks[[4, 0]].ys_s, tasks.ys_s[[4, 0]])
    with pytest.raises(ValueError, match="as many meta"):
        Tasks(tasks.xs_s, tasks.ys_s, tasks.xs_q, tasks.ys_q, (1,))
    drawn = LinearRegressionTask(d=3, n=7).sample(4, generator=context_generator(0))
    regression = tasks_of_contexts(drawn, 5)
    assert regression.xs_q.shape == (4, 2, 3)
    with pytest.raises(ValueError, match="between 1 and 6"):
        tasks_of_contexts(drawn, 7)
