"""Boolean tasks against loops written from the definitions."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from gradatim.tasks import BOOLEAN_TASKS, BooleanTask, ContextStream, ContextTask, ICLBatch, Prompt
from gradatim.tasks.boolean_functions import BOOLEAN_CLASSES, BooleanFunctions, all_functions, draw_functions
from gradatim.tasks.boolean_teaching import TAUGHT_CLASSES, teaching_sequence

FUNCTIONS = [name for name in BOOLEAN_TASKS if name != "nearest_neighbour"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def literal_holds(w, x):
    return x > 0 if w > 0 else x < 0


def label(rule, terms, bias, x):
    """One label, from the words of the definition."""
    used = [[i for i, w in enumerate(term) if w] for term in terms]
    if rule == "parity":
        return 1 if sum(x[i] > 0 for i in used[0]) % 2 else -1
    if rule == "halfspace":
        return 1 if sum(w * v for w, v in zip(terms[0], x, strict=True)) > bias else -1
    held = [[literal_holds(term[i], x[i]) for i in u] for term, u in zip(terms, used, strict=True)]
    if rule == "dnf":
        return 1 if any(all(h) for h in held) else -1
    return 1 if all(any(h) for h in held) else -1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_labels_are_those_of_the_definition(name):
    prompt = BooleanTask(9, name, 25).sample(40, generator=seeded(1))
    f = prompt.functions
    for b in range(40):
        for t in range(25):
            expected = label(f.rule, f.w[b].tolist(), f.bias[b].item(), prompt.x[b, t].tolist())
            assert prompt.y[b, t] == expected, (name, b, t)
    assert set(prompt.x.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("rule", ["dnf", "cnf", "halfspace", "parity"])
def test_every_small_function_on_every_input(rule):
    w = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=3)))
    if rule == "parity":
        w = w.abs().unique(dim=0)
    x = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))
    bias = torch.full((len(w),), 0.5)
    found = BooleanFunctions(rule, w[:, None], bias)(x.expand(len(w), -1, -1))
    for i, row in enumerate(w.tolist()):
        assert found[i].tolist() == [label(rule, [row], 0.5, p) for p in x.tolist()]


def test_positive_rates_of_the_classes():
    # Shares measured with the published sampler: 28 bits (20 for integer weights), 70 points.
    expected = {
        "conjunction": 0.31, "disjunction": 0.70, "dnf": 0.42, "cnf": 0.60, "majority": 0.43,
        "threshold": 0.51, "sparse_disjunction": 0.65, "int_halfspace": 0.47, "parity": 0.5,
    }  # fmt: skip
    for name, rate in expected.items():
        task = BooleanTask(20 if name == "int_halfspace" else 28, name, 70)
        found = (task.sample(1500, generator=seeded()).y > 0).float().mean().item()
        assert abs(found - rate) < 0.04, (name, found)  # those shares came from 64 prompts


@pytest.mark.parametrize("name", FUNCTIONS)
def test_weights_follow_the_prior(name):
    kind = BOOLEAN_CLASSES[name]
    w = draw_functions(kind, 12, 6000, seeded()).w
    if kind.integers:
        for value in range(-3, 4):
            assert abs((w == value).float().mean() - 1 / 7) < 0.01
    elif kind.k:
        assert ((w == 1).sum(-1) == kind.k).all()
        assert abs((w[:, 0, 0] == 1).float().mean() - kind.k / 12) < 0.03
    else:
        for value, p in zip((0, 1, -1), kind.prior, strict=True):
            assert abs((w == value).float().mean() - p) < 0.01
    if name == "threshold":
        assert draw_functions(kind, 4, 500, seeded()).bias.unique().tolist() == [
            -2.5,
            -1.5,
            -0.5,
            0.5,
            1.5,
            2.5,
        ]


@pytest.mark.parametrize(("name", "sign"), [("conjunction", 1), ("disjunction", -1), ("dnf", 1), ("cnf", -1)])
@pytest.mark.parametrize("per_point", [False, True])
def test_planted_inputs_fix_the_label(name, sign, per_point):
    plain = BooleanTask(30, name, 50, planted=0.0, prior=(0.6, 0.2, 0.2)).sample(300, generator=seeded())
    task = BooleanTask(30, name, 50, planted=0.4, prior=(0.6, 0.2, 0.2), plant_per_point=per_point)
    planted = task.sample(300, generator=seeded())
    # At this size hardly any input satisfies a term by chance.
    assert (plain.y == sign).float().mean() < 0.05
    assert abs((planted.y == sign).float().mean() - 0.4) < 0.03
    target = sign * planted.functions.w  # [batch, terms, n]
    agree = ((planted.x[:, :, None] == target[:, None]) | (target[:, None] == 0)).all(-1)  # [batch, m, terms]
    several = (agree & (target != 0).any(-1)[:, None]).any(1).sum(-1) > 1
    if target.shape[1] > 1:
        assert several.float().mean() > 0.9 if per_point else several.float().mean() < 0.3
    # Untouched coordinates are fair bits: the share of set bits is that of irrelevant coordinates.
    irrelevant = (planted.functions.w == 0).all(1)[:, None].expand_as(planted.x)
    assert abs((planted.x[irrelevant] > 0).float().mean() - 0.5) < 0.01


def test_fair_bits():
    x = BooleanTask(70, "parity", 30).sample(400, generator=seeded()).x
    assert x.mean((0, 1)).abs().max() < 0.05
    flat = x.flatten(0, 1)
    correlation = flat.T @ flat / len(flat) - torch.eye(70)
    assert correlation.abs().max() < 0.06
    shifted = BooleanTask(10, "parity", 30, x_prob=0.8).sample(400, generator=seeded()).x
    assert abs((shifted > 0).float().mean() - 0.8) < 0.01


def test_noise_flips_labels_and_keeps_the_clean_ones():
    task = BooleanTask(8, "conjunction", 40, noise=0.2)
    noisy = task.sample(500, generator=seeded())
    assert abs((noisy.y != noisy.clean).float().mean() - 0.2) < 0.01
    assert torch.equal(noisy.clean, noisy.functions(noisy.x))


# -- teaching sequences --------------------------------------------------------------------------------


def consistent(candidates: BooleanFunctions, x, y):
    return (candidates(x.expand(len(candidates), -1, -1)) == y).all(-1)


@pytest.mark.parametrize("name", [n for n in TAUGHT_CLASSES if not n.endswith("nf")])
def test_a_teaching_sequence_singles_out_its_function(name):
    candidates, log_prior = all_functions(name, 5)
    assert log_prior.exp().sum().item() == pytest.approx(1.0)
    points, length = teaching_sequence(name, candidates)
    for b in range(len(candidates)):
        x = points[b, : length[b]]
        y = candidates(points)[b, : length[b]]
        left = torch.nonzero(consistent(candidates, x, y))[:, 0].tolist()
        assert left == [b], (name, candidates.w[b])


@pytest.mark.parametrize("name", ["conjunction", "monotone_conjunction", "sparse_parity"])
def test_no_point_of_a_teaching_sequence_is_superfluous(name):
    candidates, _ = all_functions(name, 4)
    points, length = teaching_sequence(name, candidates)
    labels = candidates(points)
    for b in range(len(candidates)):
        k = int((candidates.w[b] != 0).sum())
        assert length[b] == k + {"conjunction": 2, "monotone_conjunction": 1, "sparse_parity": 0}[name]
        if k == 4:
            continue  # Without irrelevant bits the positive points say nothing that the negative ones do not.
        for left_out in range(int(length[b])):
            keep = [i for i in range(int(length[b])) if i != left_out]
            # k is known for sparse parity, so the last point follows from the others only for k = n.
            others = consistent(candidates, points[b, keep], labels[b, keep])
            assert others.sum() > 1, (name, candidates.w[b], left_out)


@pytest.mark.parametrize("name", ["monotone_dnf", "monotone_cnf"])
def test_a_dnf_is_singled_out_among_those_of_three_terms(name):
    rows = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)))[1:]
    triples = list(itertools.combinations(range(len(rows)), 3))
    rule = "dnf" if name == "monotone_dnf" else "cnf"
    w = torch.stack([rows[list(t)] for t in triples])
    every = BooleanFunctions(rule, w, torch.zeros(len(w)))
    x = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))
    tables = every(x.expand(len(every), -1, -1))
    irredundant = [i for i, t in enumerate(w) if not any(
        a != b and bool((t[a] <= t[b]).all()) for a in range(3) for b in range(3)
    )]  # fmt: skip
    points, length = teaching_sequence(name, every)
    labels = every(points)
    assert len(irredundant) > 5
    for i in irredundant:
        assert length[i] == w[i].sum() + 3
        same = consistent(every, points[i, : length[i]], labels[i, : length[i]])
        assert (tables[same] == tables[i]).all()


def test_prompts_begin_with_the_sequence_and_its_controls_differ_only_there():
    kinds = {
        prefix: BooleanTask(10, "conjunction", 30, teaching=True, prefix=prefix).sample(
            64, generator=seeded(3)
        )
        for prefix in ("teaching", "permuted", "random")
    }
    taught, permuted, random = kinds["teaching"], kinds["permuted"], kinds["random"]
    points, length = teaching_sequence("conjunction", taught.functions)
    assert torch.equal(taught.teach_len, length)
    assert torch.equal(permuted.teach_len, length)
    assert torch.equal(random.teach_len, length)
    moved = 0
    for b in range(64):
        k = int(length[b])
        assert torch.equal(taught.x[b, :k], points[b, :k])
        assert sorted(permuted.x[b, :k].tolist()) == sorted(points[b, :k].tolist())
        moved += not torch.equal(permuted.x[b], taught.x[b])
        for other in (permuted, random):
            assert torch.equal(other.x[b, k:], taught.x[b, k:])
    assert moved > 50
    assert not torch.equal(random.x, taught.x)
    assert torch.equal(taught.scored.sum(1), 30 - length)
    assert (taught.after(4).sum(1) == 4).all()
    assert (taught.y[:, :2] == 1).all()


def test_the_share_of_taught_prompts():
    task = BooleanTask(10, "sparse_parity", 20, teaching=0.25)
    length = task.sample(4000, generator=seeded()).teach_len
    assert set(length.tolist()) == {0, 2}
    assert abs((length > 0).float().mean() - 0.25) < 0.03
    per_batch = BooleanTask(10, "sparse_parity", 20, teaching=0.5, mix="batch")
    drawn = [per_batch.sample(8, generator=seeded(s)).teach_len for s in range(40)]
    assert all(len(d.unique()) == 1 for d in drawn)
    assert 8 < sum(bool(d[0]) for d in drawn) < 32


def test_a_sequence_that_leaves_no_point_is_refused():
    task = BooleanTask(10, "conjunction", 6, prior=(0.0, 0.5, 0.5), teaching=True)
    with pytest.raises(ValueError, match=r"prompt 0 has 12 points"):
        task.sample(2, generator=seeded())


# -- nearest neighbour -----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(2, 30), st.integers(0, 10_000))
def test_nearest_neighbour_labels_against_a_loop(d, m, seed):
    start = 1 + seed % (m - 1)
    prompt = BooleanTask(d, "nearest_neighbour", m, start_idx=start).sample(3, generator=seeded(seed))
    assert (prompt.teach_len == start).all()
    for x, y in zip(prompt.x.tolist(), prompt.y.tolist(), strict=True):
        for t in range(m):
            equal = [j for j in range(t) if x[j] == x[t]]
            if t < start:
                assert not equal or y[t] == y[equal[0]]
                continue
            cosine = [sum(a * b for a, b in zip(x[j], x[t], strict=True)) / d for j in range(t)]
            assert y[t] == y[cosine.index(max(cosine))]


def test_first_labels_are_fair_coins():
    y = BooleanTask(16, "nearest_neighbour", 30, start_idx=20).sample(2000, generator=seeded()).y
    assert y[:, :20].mean(0).abs().max() < 0.1


# -- pools, streams, contracts -----------------------------------------------------------------------------


def test_a_pool_and_its_complement_share_no_function():
    task = BooleanTask(10, "sparse_parity", 12, pool=30, pool_seed=4)
    inside = task.sample(500, generator=seeded()).functions
    outside = task.held_out().sample(500, generator=seeded()).functions
    assert len(inside.w.unique(dim=0)) == 30
    assert len(outside.w.unique(dim=0)) == math.comb(10, 2) - 30
    assert not inside.matches(outside).any()
    again = BooleanTask(10, "sparse_parity", 12, pool=30, pool_seed=5).functions
    assert not torch.equal(again.w, task.functions.w)
    with pytest.raises(ValueError, match="only 45 distinct"):
        BooleanTask(10, "sparse_parity", 12, pool=46).sample(1, generator=seeded())
    with pytest.raises(ValueError, match="outside the pool"):
        BooleanTask(10, "sparse_parity", 12, pool=45).held_out().sample(4, generator=seeded())


def test_fixed_inputs_belong_to_their_function():
    task = BooleanTask(12, "conjunction", 10, pool=6, fixed_inputs=True)
    prompt = task.sample(200, generator=seeded())
    rows = torch.cat([prompt.w[:, None], prompt.x], 1).flatten(1)
    assert len(rows.unique(dim=0)) == 6


@pytest.mark.parametrize("name", BOOLEAN_TASKS)
def test_same_state_same_prompts_and_no_global_state(name):
    task = BooleanTask(10, name, 30, noise=0.1)
    before = torch.get_rng_state()
    a, b = task.sample(5, generator=seeded(2)), task.sample(5, generator=seeded(2))
    other = task.sample(5, generator=seeded(3))
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.y, b.y)
    assert not torch.equal(a.x, other.x)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(task, ContextTask)
    assert isinstance(a, ICLBatch)
    double = a.to(dtype=torch.float64)
    assert isinstance(double, Prompt)
    assert double.x.dtype == double.y.dtype == torch.float64
    assert torch.equal(double.scored, a.scored)


def test_prompts_stream_into_a_loader():
    batch = next(iter(DataLoader(ContextStream(BooleanTask(6, "dnf", 9), 4), batch_size=None)))
    assert batch["x"].shape == (4, 9, 6)
    assert torch.equal(batch["labels"], batch["y"])


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"name": "xor"}, "no Boolean task"),
        ({"d": 0}, "at least one bit"),
        ({"name": "sparse_parity", "k": 9}, "k must lie"),
        ({"k": 2}, "k is for"),
        ({"planted": 1.5}, "planted is a probability"),
        ({"name": "parity", "planted": 0.2}, "no literals"),
        ({"name": "majority", "teaching": True}, "no teaching sequence"),
        ({"prior": (0.5, 0.5, 0.5)}, "sum to 1"),
        ({"name": "int_halfspace", "prior": (1.0, 0.0, 0.0)}, "prior"),
        ({"name": "nearest_neighbour", "n": 20}, "start_idx"),
        ({"name": "nearest_neighbour", "planted": 0.3}, "draws no functions"),
        ({"fixed_inputs": True}, "pool"),
        ({"prefix": "reversed", "teaching": True}, "prefix"),
        ({"mix": "step", "teaching": True}, "mix"),
    ],
)
def test_bad_settings_are_refused(settings, error):
    with pytest.raises(ValueError, match=error):
        BooleanTask(**{"d": 8, **settings})


def test_bad_draws_are_refused():
    task = BooleanTask(5)
    with pytest.raises(TypeError, match="floating"):
        task.sample(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least one"):
        task.sample(0)
    with pytest.raises(ValueError, match="n <= 12"):
        all_functions("conjunction", 13)
