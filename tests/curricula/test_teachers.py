"""Teachers against other people's BM25 and scipy's standardisation, and their fusion against the formula."""

from __future__ import annotations

import subprocess
import sys

import bm25s
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.curricula import BM25, Dense, TeacherEnsemble
from gradatim.curricula.teachers import normalized
from tiny_encoder import WORDS, tiny_encoder


def sentences(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS[:35], size=rng.integers(2, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("model"))


def test_bm25_is_bm25s(model):
    corpus, queries = sentences(60, 0), [*sentences(12, 1), "nothing known here", "sum sum kernel"]
    index = bm25s.BM25(k1=1.4, b=0.4)
    distinct = list(dict.fromkeys(corpus))
    index.index(bm25s.tokenize(distinct, stopwords="en", show_progress=False), show_progress=False)
    words = bm25s.tokenize(queries, stopwords="en", show_progress=False, return_ids=False)
    expected = np.zeros((len(queries), len(corpus)), dtype=np.float32)
    for i, row in enumerate(words):
        known = [w for w in row if w in index.vocab_dict]
        if known:
            scores = index.get_scores(known)
            expected[i] = [scores[distinct.index(text)] for text in corpus]
    teacher = BM25()
    np.testing.assert_allclose(teacher.matrix(queries, corpus).numpy(), expected, rtol=1e-5, atol=1e-6)
    fitted = BM25().fit(corpus)
    candidates = [corpus[i : i + 5] for i in range(len(queries))]
    pairs = fitted.pairs(queries, candidates)
    np.testing.assert_allclose(
        pairs.numpy(), [expected[i, i : i + 5] for i in range(len(queries))], rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="fitted on a corpus without 'a stranger'"):
        fitted.pairs(["sum"], [["a stranger"]])


def test_dense_gives_cosines_and_encodes_once(model):
    queries, corpus = sentences(4, 2), sentences(9, 3)
    q, d = model.encode(queries, normalize_embeddings=True), model.encode(corpus, normalize_embeddings=True)
    seen: list[int] = []

    class Counting:
        def encode(self, texts, **options):
            seen.append(len(texts))
            return model.encode(texts, **options)

    teacher = Dense(Counting())
    np.testing.assert_allclose(teacher.matrix(queries, corpus).numpy(), q @ d.T, atol=1e-5)
    np.testing.assert_allclose(teacher.pairs(queries, [corpus[:3]] * 4).numpy(), q @ d[:3].T, atol=1e-5)
    assert seen == [4, len(set(corpus))]


@given(st.integers(0, 10_000), st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_norms_agree_with_scipy(seed, n):
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(0, 4, size=(3, n)).astype(np.float32))
    flat = np.ptp(scores.numpy(), axis=1) == 0
    z, m, r = (normalized(scores, how).numpy() for how in ("zscore", "minmax", "rank"))
    for i, row in enumerate(scores.double().numpy()):
        np.testing.assert_allclose(z[i], 0 if flat[i] else scipy.stats.zscore(row), atol=1e-5)
        np.testing.assert_allclose(
            m[i], 0 if flat[i] else (row - row.min()) / (row.max() - row.min()), atol=1e-6
        )
        np.testing.assert_allclose(r[i], (scipy.stats.rankdata(row) - 1) / (n - 1), atol=1e-6)


@given(st.integers(0, 1000), st.sampled_from(["zscore", "minmax", "rank"]))
@settings(max_examples=30, deadline=None)
def test_absent_places_take_no_part(seed, how):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(4, 7, generator=generator)
    present = torch.ones(4, 7, dtype=torch.bool)
    present[:, 5:] = False
    found = normalized(scores, how, present)
    torch.testing.assert_close(found[:, :5], normalized(scores[:, :5], how))
    assert (found[:, 5:] == 0).all()


class Length:
    """A re-ranker: the length of the passage."""

    def score(self, queries, candidates):
        return torch.tensor([[float(len(d)) for d in row] for row in candidates])


@pytest.mark.parametrize("how", ["zscore", "minmax", "rank"])
def test_fusion_is_the_weighted_sum(model, how):
    queries, corpus = sentences(3, 4), sentences(12, 5)
    candidates = [corpus[i : i + 6] for i in range(3)]
    bm25, dense = BM25().fit(corpus), Dense(model)
    ensemble = TeacherEnsemble([bm25, dense], [Length()], normalize=how)
    assert ensemble.weights == (0.2, 0.3, 0.5)
    expected = (
        0.2 * normalized(bm25.pairs(queries, candidates), how)
        + 0.3 * normalized(dense.pairs(queries, candidates), how)
        + 0.5 * normalized(Length().score(queries, candidates), how)
    )
    torch.testing.assert_close(ensemble.score(queries, candidates), expected)
    both = TeacherEnsemble([bm25, dense], weights=[2, -1], normalize=how)
    torch.testing.assert_close(
        both.matrix(queries, corpus),
        2 * normalized(bm25.matrix(queries, corpus), how) - normalized(dense.matrix(queries, corpus), how),
    )


def test_annotate_adds_scores_and_keeps_labels(model):
    from datasets import Dataset

    queries, corpus = sentences(3, 6), sentences(9, 7)
    columns = {f"doc_{j + 1}": corpus[3 * j : 3 * j + 3] for j in range(3)}
    labels = [[1, 0, 0], [1, 0, -1], [1, 1, 0]]
    plain = Dataset.from_dict({"query": queries, **columns})
    ensemble = TeacherEnsemble([BM25(), model]).fit(corpus)
    candidates = [list(row) for row in zip(*columns.values(), strict=True)]
    expected = ensemble.score(queries, candidates)
    torch.testing.assert_close(torch.tensor(ensemble.annotate(plain)["label"]), expected)
    labelled = plain.add_column("label", labels)
    kept = ensemble.annotate(labelled, keep_labels=True)
    assert kept.column_names == ["query", "doc_1", "doc_2", "doc_3", "label"]
    scores, marks = zip(*kept["label"], strict=True)
    assert [[int(m) for m in row] for row in marks] == labels
    torch.testing.assert_close(torch.tensor(scores[0]), expected[0])
    # The empty place of row 1 counts for nothing: two passages are left, at +1 and -1 per teacher.
    assert scores[1][2] == 0
    assert abs(scores[1][0] + scores[1][1]) < 1e-5


def test_what_an_ensemble_refuses(model):
    from datasets import Dataset

    with pytest.raises(ValueError, match="at least one"):
        TeacherEnsemble()
    with pytest.raises(ValueError, match=r"weights=\[1\.0\]: give 2"):
        TeacherEnsemble([BM25(), model], weights=[1.0])
    with pytest.raises(ValueError, match="finite numbers"):
        TeacherEnsemble([model], weights=[float("nan")])
    with pytest.raises(ValueError, match="normalize='softmax'"):
        TeacherEnsemble([model], normalize="softmax")
    ensemble = TeacherEnsemble([BM25()], [Length()])
    with pytest.raises(ValueError, match="not a whole corpus"):
        ensemble.matrix(["a"], ["b"])
    with pytest.raises(ValueError, match=r"lengths \[1, 2\]"):
        ensemble.score(["a", "b"], [["x"], ["y", "z"]])
    with pytest.raises(ValueError, match="at least two passages"):
        ensemble.annotate(Dataset.from_dict({"query": ["a"], "doc_1": ["b"]}))
    with pytest.raises(ValueError, match="needs a column 'label'"):
        ensemble.annotate(Dataset.from_dict({"query": ["a"], "d1": ["b"], "d2": ["c"]}), keep_labels=True)

    class Broken:
        def score(self, queries, candidates):
            return torch.full((len(queries), len(candidates[0])), torch.nan)

    with pytest.raises(ValueError, match="not finite"):
        TeacherEnsemble(rerankers=[Broken()]).score(["a"], [["x", "y"]])


def test_the_room_is_quick_to_import():
    code = "import sys, gradatim.curricula; print('torch' in sys.modules, 'bm25s' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "False"], done.stderr[-500:]
