"""Paper 13's study: its world, its trials at a small scale, its claims on made-up results."""

from __future__ import annotations

import io

import matplotlib.figure
import numpy as np
import pytest
import torch

from gradatim.bench import Curve, Outcome, Results, judge
from gradatim.studies import seal as paper
from gradatim.studies import seal_figures, seal_text, seal_world
from gradatim.tasks import RetrievalTask
from tiny_causal_lm import WORDS, tiny_llama, tiny_tokenizer

QUICK = paper.study.profiles["quick"]
SMALL = {**QUICK.scale, "documents": 60, "queries": 8, "looked_at": 4, "steps": 4, "looks": 2, "gate": 99.0}


def arm(name):
    return next(a for a in paper.study.arms if a.name == name)


def test_world_says_concepts_differently_in_documents_and_queries():
    world = seal_world.make_world(5, 200, 0.3)
    assert len(world.phrases) == seal_world.CONCEPTS
    assert all(len(phrase) in (2, 3) for phrase in world.phrases)
    same = sum(a == b for a, b in zip(world.phrases, world.words, strict=True))
    assert same == 36
    for text, concepts, starts in zip(world.documents, world.concepts, world.starts, strict=True):
        assert len(set(concepts)) == 12
        for concept, start in zip(concepts, starts, strict=True):
            assert text[start : start + len(world.phrases[concept])] == world.phrases[concept]
    used = {t for text in world.documents for t in text}
    own = {w[0] for p, w in zip(world.phrases, world.words, strict=True) if p != w}
    assert not used & own
    assert seal_world.make_world(6, 200, 0.3).documents != world.documents


def test_training_rows_come_from_the_training_documents_alone():
    world = seal_world.make_world(5, 100, 0.3)
    train = {tuple(d[i : i + 5]) for d in world.documents[: world.trained] for i in range(len(d))}
    for batch in seal_world.Batches(world, 3, 16, seed=1):
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            at = int((ids == seal_world.SEPARATOR).nonzero()[0])
            target = labels[labels >= 0].tolist()
            assert ids[at + 1 : at + 1 + len(target)].tolist() == target
            assert (labels[: at + 1] == -100).all()
            assert any(t[: len(target)] == tuple(target) for t in train)
    bench = seal_world.make_bench(5, SMALL)
    assert all(doc >= bench.world.trained for doc, _ in bench.asked)


@pytest.mark.parametrize("name", ["seal", "seal/untrained"])
def test_a_generator_trial_measures_every_way_of_scoring(name):
    outcome = paper.trial(arm(name), 3, SMALL)
    again = paper.trial(arm(name), 3, SMALL)
    assert outcome == again
    assert outcome.metrics["valid"] == 1.0
    assert 0 <= outcome.metrics["valid unconstrained"] < 1
    for way in seal_world.SCORINGS:
        assert len(outcome.curves[f"figure/queries {way}"].y) == 8
        assert 0 <= outcome.metrics[f"mrr/{way}"] <= 1
    assert outcome.metrics["mrr"] == outcome.metrics["mrr/intersective"]
    assert ("figure/learning" in outcome.curves) == (name == "seal")
    if name == "seal":
        assert list(outcome.curves["figure/learning"].x) == [0, 2, 4]
        assert len(outcome.curves["figure/keys in"].x) + len(outcome.curves["figure/keys out"].x) > 5


def test_a_generator_that_did_not_learn_fails_rather_than_testify():
    with pytest.raises(RuntimeError, match=r"training loss .* is above 0.1"):
        paper.trial(arm("seal"), 3, {**SMALL, "gate": 0.1})


def test_bm25_finds_translated_queries_better():
    scale = {**SMALL, "documents": 300, "queries": 40}
    plain = paper.trial(arm("bm25"), 0, scale).metrics["mrr"]
    translated = paper.trial(arm("bm25/translated"), 0, scale).metrics["mrr"]
    assert translated > plain + 0.2


def test_reciprocal_ranks_on_keys_with_a_known_answer():
    from gradatim.inference import Key
    from gradatim.inference.substring_beams import Decoded

    bench = seal_world.make_bench(1, SMALL)
    decoded = []
    for doc, _ in bench.asked:
        text = bench.world.documents[doc]
        tokens = tuple(text[:5])
        key = Key(tokens, -0.1, bench.index.count(tokens), True)
        decoded.append(Decoded([key], torch.zeros(1)))
    found = seal_world.reciprocal_ranks(bench, decoded, seal_world.SCORINGS["intersective"])
    assert (found > 0).all()
    assert np.mean(found == 1) > 0.5
    nothing = [Decoded([], torch.zeros(1))] * len(bench.asked)
    assert (seal_world.reciprocal_ranks(bench, nothing, seal_world.SCORINGS["lm"]) == 0).all()


# Claims on made-up results ------------------------------------------------------------------------------


def made_up(**values):
    """Results with given mean reciprocal ranks, a little noise per seed, and curves for the figures."""
    rng = np.random.default_rng(0)
    ways = dict.fromkeys(seal_world.SCORINGS, 0.3)
    outcomes = {}
    for a in paper.study.arms:
        key = a.name.replace("/", "_").replace("-", "_")
        outcomes[a.name] = {}
        for seed in range(5):
            metrics = {"valid": 1.0, "valid unconstrained": 0.4 + 0.01 * rng.normal()}
            for way in [*ways, "bm25", "fusion with bm25"]:
                name = f"{key}__{way}".replace(" ", "_").replace(",", "").replace("+", "_").replace("=", "")
                metrics[f"mrr/{way}"] = values.get(name, values.get(key, 0.3)) + 0.002 * rng.normal()
            metrics["mrr"] = metrics["mrr/intersective"]
            curves = {
                f"figure/queries {way}": Curve(list(range(20)), rng.random(20).tolist())
                for way in [*ways, "bm25"]
            }
            curves["figure/learning"] = Curve([0, 5, 10], [0.0, 0.2, 0.4])
            curves["figure/keys in"] = Curve([-7.0, -5.0], [-1.0, -2.0])
            curves["figure/keys out"] = Curve([-6.0], [-3.0])
            outcomes[a.name][seed] = Outcome(metrics, curves)
    return Results(outcomes)


def verdicts(results, profile=None):
    return {v.claim.id: v for v in judge(paper.study, results, profile)}


def test_claims_can_hold_and_fail():
    good = verdicts(
        made_up(
            seal=0.4, seal__intersective=0.6, seal__lm_fm=0.2, seal__lm=0.1, seal__lm_all_lengths=0.1,
            seal_untrained=0.01, bm25=0.2, text_seal=0.5, text_seal__lm_fm=0.3, text_bm25=0.4,
        )
    )  # fmt: skip
    for name, verdict in good.items():
        assert verdict.word == "reproduced", name
        assert verdict.control.word == "survives", name
    bad = verdicts(
        made_up(
            seal=0.4, seal__intersective=0.1, seal__lm_fm=0.2, seal__lm=0.3, seal_untrained=0.5, bm25=0.2,
            text_seal=0.2, text_seal__lm_fm=0.3, text_bm25=0.4, bm25_translated=0.5,
        )
    )  # fmt: skip
    for name, verdict in bad.items():
        assert verdict.word == ("reproduced" if name == "valid" else "not reproduced"), name
    assert set(verdicts(made_up(), "quick")) == {c.id for c in paper.CLAIMS if not c.id.startswith("text")}


def test_profiles_hold_what_the_trials_read():
    names = {a.name for a in paper.study.arms}
    for profile in paper.study.profiles.values():
        arms = {a.name for a in paper.study.arms_of(profile)}
        assert arms <= names
        assert ("text" in profile.scale) == any(name.startswith("text/") for name in arms)
    assert paper.data_version(QUICK.scale) == ""
    assert "numpy" in paper.data_version(paper.study.profiles["standard"].scale)


def test_figures_draw_and_tables_hold_numbers():
    for results in (made_up(), Results({})):
        for figure in paper.study.figures:
            canvas = matplotlib.figure.Figure()
            figure.draw(canvas, results)
            canvas.savefig(io.BytesIO(), format="svg")
            table = figure.table(results)
            assert bool(table.rows) == bool(results.outcomes), figure.name
            assert all(len(row) == len(table.header) for row in table.rows)


def test_lines_of_equal_weight_are_where_the_weight_is():
    from gradatim.inference.key_weights import log_odds

    x = np.log(np.array([1e-4, 1e-3, 0.05]))
    for weight in (0.5, 4.0):
        y = seal_figures._line(x, weight)
        counts = np.exp(x) * 1e9
        found = log_odds(y, counts.round().astype(np.int64), 10**9, smoothing=0.0)
        np.testing.assert_allclose(found, weight, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_snippet_runs_as_it_stands():
    space: dict[str, object] = {}
    with torch.random.fork_rng():
        exec(paper.study.snippet, space)  # noqa: S102 (our own text, shown to readers as code that runs)
    assert any(space["written"] in f" {text}" for text in space["texts"])
    assert len(space["written"]) > 3


# Text ---------------------------------------------------------------------------------------------------


@pytest.fixture
def words(monkeypatch):
    """A corpus of the tiny model's words, in place of docstrings and a pretrained model."""
    rng = np.random.default_rng(0)
    passages = {f"d{i}": " ".join(rng.choice(WORDS, 20)) for i in range(12)}
    queries = {f"d{i}": " ".join(passages[f"d{i}"].split()[:3]) for i in range(12)}
    test = RetrievalTask(
        "t", {q: queries[q] for q in ("d0", "d1")}, passages, {q: {q: 1} for q in ("d0", "d1")}
    )
    material = seal_text.Material(passages, [(queries[f"d{i}"], f"d{i}") for i in range(2, 12)], test)
    monkeypatch.setattr(seal_text, "material_of", lambda seed, scale: material)
    tokenizer = tiny_tokenizer()
    monkeypatch.setattr(
        seal_text, "load_generator", lambda name: (tiny_llama(dtype=torch.float32), tokenizer)
    )
    return {
        "text": {
            **paper.study.profiles["standard"].scale["text"],
            "layers": 1, "steps": 3, "batch": 4, "precision": "", "beams": 3, "ngram": 3,
            "zero_shot_prompt": "{query}",
        }
    }  # fmt: skip


def test_text_arms_train_and_rank(words):
    trained = paper.trial(arm("text/seal"), 0, words)
    zero = paper.trial(arm("text/zero-shot"), 0, words)
    lexical = paper.trial(arm("text/bm25"), 0, words)
    assert trained.metrics["training loss"] > 0
    assert len(trained.curves["loss"].x) == 3
    for outcome in (trained, zero):
        assert {"mrr/lm", "mrr/lm+fm", "mrr/intersective", "mrr/fusion with bm25"} <= set(outcome.metrics)
    assert "training loss" not in zero.metrics
    assert lexical.metrics["hits@1"] == 1.0


def test_only_the_last_blocks_are_trained():
    model = tiny_llama()
    seal_text.freeze_below(model, 2)
    free = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert free == {"1", "2"}
    with pytest.raises(ValueError, match="layers=9: the model has 3 blocks"):
        seal_text.freeze_below(model, 9)


def test_fusion_and_ranks_by_hand():
    assert seal_text.fused([["a", "b"], ["b", "c"]]) == ["b", "a", "c"]
    task = RetrievalTask("t", {"q": "x", "r": "y"}, {"a": "1", "b": "2"}, {"q": {"b": 1}, "r": {"a": 1}})
    np.testing.assert_array_equal(seal_text.reciprocal_ranks(task, {"q": ["a", "b"], "r": ["b"]}), [0.5, 0.0])


def test_a_beir_folder_is_read_and_its_absence_named(tmp_path):
    (tmp_path / "qrels").mkdir()
    rows = [f'{{"_id": "d{i}", "title": "", "text": "passage {i}"}}' for i in range(5)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "queries.jsonl").write_text('{"_id": "q0", "text": "a"}\n{"_id": "q1", "text": "b"}\n')
    header = "query-id\tcorpus-id\tscore\n"
    (tmp_path / "qrels" / "train.tsv").write_text(header + "q0\td0\t1\n")
    (tmp_path / "qrels" / "dev.tsv").write_text(header + "q1\td1\t1\n")
    material = seal_text.beir_material(str(tmp_path), 10)
    assert list(material.train) == [("a", "d0")]
    assert material.test.qrels == {"q1": {"d1": 1}}
    with pytest.raises(ValueError, match="GRADATIM_BEIR=FOLDER"):
        seal_text.beir_material("", 10)


@pytest.mark.slow
def test_real_trial_beats_bm25():
    scale = {**QUICK.scale, "queries": 60, "looks": 1}
    trained = paper.trial(arm("seal"), 1, scale).metrics
    assert trained["mrr"] > paper.trial(arm("bm25"), 1, scale).metrics["mrr"] + 0.1
    assert trained["mrr"] > trained["mrr/lm+fm"] + 0.1
