"""Paper 16's study: its claims on made-up results, its pieces on exact cases, and small real trials."""

from __future__ import annotations

import io

import matplotlib.figure
import numpy as np
import pytest

from gradatim.bench import Outcome, Results, judge, tuning_seeds
from gradatim.inference import hamming_distances
from gradatim.studies import load
from gradatim.studies import text_vectors as paper
from gradatim.studies import text_vectors_trials as trials
from gradatim.studies import text_vectors_tuning as tuning
from gradatim.studies.text_vectors_hashing import autoencoder_codes
from gradatim.tasks.docstrings import LabelledDocuments
from gradatim.tasks.tied_retrieval import retrieval_scores

QUICK = paper.study.profiles["quick"]
SCALE = {
    **QUICK.scale,
    "queries": 20,
    "paragraphs": {"min_count": 2, "sample": 0.0, "epochs": 12},
    "recipes": {
        **{name: {"lr": 0.05, "doc_lr": 1.0} for name in ("bpv", "bpv-smooth")},
        "real-binary": {"lr": 0.05, "doc_lr": 0.2},
        **{f"pv-{how}": {"lr": 0.05} for how in ("lsh", "sign", "median", "itq")},
        "pv-cosine": {"lr": 0.05, "real": 100},
        "lsa-itq": {"dim": 12, "sublinear_tf": True, "use_idf": True},
        "autoencoder": {"words": 60, "hidden": 24, "lr": 5e-3, "epochs": 40, "noise": 1.0},
    },
    "dropouts": {"32": 0.0},
    "pairs": 3,
    "counts": [40, 400],
    "senses": {"n_senses": 2, "n_components": 16, "sample": 0.0, "warm_epochs": 2, "epochs": 3},
    "skip_gram": {"n_components": 16, "epochs": 3, "sample": 0.0},
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Four topics of fifteen words each."""
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 4
    documents = tuple(tuple(f"{'abcd'[t]}{'xyz'[j % 3]}{j}" for j in rng.integers(0, 15, 40)) for t in labels)
    made = LabelledDocuments(documents, labels, ("a", "b", "c", "d"))
    monkeypatch.setattr(trials, "_docstrings", lambda *_: made)
    return made


def arm(name):
    return next(a for a in paper.study.arms if a.name == name)


def made_up(**values):
    """Results with given means by arm (dots for slashes and dashes), a little noise per seed."""
    rng = np.random.default_rng(0)
    outcomes = {}
    for a in paper.study.arms:
        value = values.get(a.name.replace("/", "_").replace("-", "_"), 0.4)
        outcomes[a.name] = {
            s: Outcome(
                {
                    "map": value + 0.001 * rng.normal(),
                    "ndcg@10": value + 0.001 * rng.normal(),
                    "ari": value + 0.001 * rng.normal(),
                    "senses in use": 3 * value + 0.001 * rng.normal(),
                    "distinct": 0.9,
                    "reranked ndcg@10": value + 0.1 + 0.001 * rng.normal(),
                    "cosine ndcg@10": value + 0.1 + 0.001 * rng.normal(),
                }
            )
            for s in range(4)
        }
    return Results(outcomes)


def test_claims_can_hold_and_fail():
    good = {
        v.claim.id: v
        for v in judge(
            paper.study,
            made_up(
                codes_bpv_32=0.6,
                codes_bpv_smooth_32=0.5,
                codes_pv_itq_32=0.7,
                senses_dsg=0.6,
                senses_kmeans=0.7,
            ),
        )
    }
    assert {v.word for v in good.values()} == {"reproduced"}
    assert good["codes-beat-hashing"].control.word == "explained away"
    assert good["bits-in-training"].control.word == "survives"
    assert good["filter-then-rank"].control.word == "survives"
    assert good["senses-beat-clusters"].control.word == "explained away"
    bad = judge(paper.study, made_up(codes_bpv_32=0.2, senses_dsg=-0.1))
    assert {v.claim.id for v in bad if v.word == "not reproduced"} >= {
        c.id for c in paper.CLAIMS if c.id != "filter-then-rank"
    }


def test_figures_draw_and_tables_hold_numbers():
    for results in (made_up(), Results({})):
        for figure in paper.study.figures:
            canvas = matplotlib.figure.Figure()
            figure.draw(canvas, results)
            canvas.savefig(io.BytesIO(), format="svg")
            table = figure.table(results)
            assert bool(table.rows) == bool(results.outcomes), figure.name
            assert all(len(row) == len(table.header) for row in table.rows)


def test_every_claim_of_the_quick_profile_has_its_arms():
    kept = Results({n: o for n, o in made_up().outcomes.items() if n in QUICK.arms})
    for claim in paper.study.claims_of("quick"):
        assert claim.effect(kept), claim.id
        assert claim.control.effect(kept), claim.id
    assert load("16").slug == "text-vectors"


@pytest.mark.parametrize(
    "name",
    ["bpv-32", "real-binary-32", "pv-lsh-32", "pv-median-32", "pv-cosine", "tfidf-cosine", "autoencoder-32"],
)
def test_topics_without_a_common_word_are_found_by_every_arm(name):
    found = trials.run_trial(arm(f"codes/{name}"), 0, SCALE)
    assert found.first_non_finite() is None
    assert found.metrics["map"] > 0.6
    if name == "bpv-32":
        assert found.metrics == trials.run_trial(arm(f"codes/{name}"), 0, SCALE).metrics
        assert found.metrics != trials.run_trial(arm(f"codes/{name}"), 1, SCALE).metrics


@pytest.mark.parametrize("family", QUICK.scale["recipes"])
def test_every_family_had_as_many_recipes_and_the_study_holds_one_of_them(family):
    rounds = tuning.GRIDS[family]
    assert [len(recipes) for recipes in rounds] == [16, 16]
    assert QUICK.scale["recipes"][family] in [*rounds[0], *rounds[1]]
    assert len({str(sorted(recipe.items())) for recipe in rounds[0]}) == 16


def test_recipes_are_tried_on_tuning_seeds_and_the_best_comes_first(monkeypatch):
    seen = []

    def spied(arm, seed, scale):
        seen.append((seed, scale["recipes"]["bpv"]["lr"]))
        return Outcome({"map": scale["recipes"]["bpv"]["lr"] + 0.1 * (seed == tuning_seeds(1)[0])})

    monkeypatch.setattr(tuning, "run_trial", spied)
    found = tuning.tried(arm("codes/bpv-32"), SCALE, [{"lr": 0.1}, {"lr": 0.3}])
    assert [(round(value, 6), recipe) for value, _, recipe in found] == [
        (0.35, {"lr": 0.3}),
        (0.15, {"lr": 0.1}),
    ]
    assert seen == [(seed, lr) for lr in (0.1, 0.3) for seed in tuning_seeds(2)]


def test_queries_are_never_trained_on():
    s = trials.split(SCALE, 0)
    assert not set(s.queries) & set(s.pool)
    assert len(s.queries) + len(s.pool) == 160
    assert not np.array_equal(s.queries, trials.split(SCALE, 1).queries)


@pytest.mark.parametrize("how", ["sign", "median", "lsh", "itq"])
def test_hashed_vectors_keep_neighbours(how):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 32)).astype(np.float32)
    labels = np.arange(80) % 4
    vectors = (centres[labels] + 0.2 * rng.normal(size=(80, 32))).astype(np.float32)
    asked, stored = trials.hash_vectors(how, vectors[:8], vectors, 16 if how in ("lsh", "itq") else 32, 0)
    relevance = labels[:8, None] == labels[None]
    assert retrieval_scores(hamming_distances(asked, stored), relevance, distances=True)["map"] > 0.9


def test_autoencoder_is_repeatable(small):
    documents = [list(d) for d in small.documents]
    one, again = (
        autoencoder_codes(documents[:5], documents[5:40], 16, SCALE["recipes"]["autoencoder"], 3)
        for _ in range(2)
    )
    np.testing.assert_array_equal(one[0], again[0])
    assert one[1].shape == (35, 2)


@pytest.mark.parametrize("name", ["dsg", "mssg", "kmeans", "one-sense"])
def test_words_of_different_topics_are_told_apart(name):
    found = trials.run_trial(arm(f"senses/{name}"), 0, {**SCALE, "counts": [80, 130], "pairs": 6})
    if name == "one-sense":
        assert found.metrics == {"ari": 0.0, "senses in use": 1.0}
    else:
        assert found.metrics["ari"] > 0.3


def test_paper_profile_reads_a_folder_of_topics(tmp_path, monkeypatch):
    for topic in ("rec.autos", "sci.space"):
        (tmp_path / topic).mkdir()
        for i in range(3):
            (tmp_path / topic / f"{i}.txt").write_text(f"Article {i} of {topic}", encoding="latin-1")
    monkeypatch.setenv(trials.DATA_VARIABLE, str(tmp_path))
    data = trials.texts({"packages": None})
    assert data.names == ("rec.autos", "sci.space")
    assert data.documents[0] == ("article", "of", "rec", "autos")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="GRADATIM_TEXTS=FOLDER"):
        trials.folder_topics("")


def test_snippet_runs_as_it_stands():
    space: dict[str, object] = {}
    exec(paper.study.snippet, space)  # noqa: S102 (our own text, shown to readers as code that runs)
    assert space["rows"].shape == (1, 5)
