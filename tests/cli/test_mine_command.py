"""`gradatim mine`: what it writes against the rule by hand, its cache, its one-line errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from gradatim.curricula import BM25
from gradatim.curricula.cached_scores import CachedScores, weights_digest
from gradatim.models import text_encoder
from tiny_encoder import WORDS, tiny_encoder


@pytest.fixture
def encoder(tmp_path, capsys):
    tiny_encoder(tmp_path).save(str(tmp_path / "encoder"))
    capsys.readouterr()  # the library's bars
    return str(tmp_path / "encoder")


@pytest.fixture
def data(tmp_path):
    """A BEIR folder: query i asks for passage i; the last six queries are for testing."""
    (tmp_path / "data" / "qrels").mkdir(parents=True)

    def put(name, rows):
        (tmp_path / "data" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    words = [[*WORDS[i : i + 6], WORDS[(7 * i) % len(WORDS)]] for i in range(28)]
    put("corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": " ".join(w)} for i, w in enumerate(words)])
    put("queries.jsonl", [{"_id": f"q{i}", "text": " ".join(w[1:4])} for i, w in enumerate(words)])
    for name, ids in (("train", range(22)), ("test", range(22, 28))):
        lines = "".join(f"q{i}\td{i}\t1\n" for i in ids)
        (tmp_path / "data" / "qrels" / f"{name}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return {" ".join(w[1:4]): " ".join(w) for w in words[:22]}, [" ".join(w) for w in words]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


COMMON = ("mine", "--data", "data", "--out", "mined.jsonl", "--negatives", "4", "--range-max", "20")


@pytest.mark.parametrize(
    ("margin", "highest"),
    [
        ("absolute:0.01", lambda t, c: t - 0.01),
        ("relative:0.99", lambda t, c: t - 0.01 * abs(t)),
        ("none", lambda t, c: np.inf),
    ],
)
def test_rows_are_the_nearest_behind_the_margin(run, encoder, data, tmp_path, margin, highest):
    asked, texts = data
    code, _, err = run(*COMMON, "--model", encoder, "--margin", margin, "--quiet")
    assert (code, err) == (0, "")
    model = text_encoder.load_text_encoder(encoder)
    passages = model.encode(texts, normalize_embeddings=True)
    rows = lines(tmp_path / "mined.jsonl")
    assert [row["query"] for row in rows] == list(asked)  # and none of the test split
    for row in rows:
        cosines = passages @ model.encode([row["query"]], normalize_embeddings=True)[0]
        own = texts.index(asked[row["query"]])
        order = [i for i in np.argsort(-cosines) if i != own][:20]
        limit = highest(cosines[own], cosines)
        kept = [i for i in order if cosines[i] <= limit][:4]
        assert row["positives"] == [texts[own]]
        assert row["positive_scores"] == pytest.approx([cosines[own]], abs=1e-5)
        scored = [i for i, s in enumerate(row["negative_scores"]) if s is not None]
        np.testing.assert_allclose([row["negative_scores"][i] for i in scored], cosines[kept], atol=1e-5)
        assert len(row["negatives"]) == 4


def test_bm25_mines_by_its_own_scores(run, data, tmp_path):
    asked, texts = data
    code, out, _ = run(*COMMON, "--model", "bm25", "--margin", "none", "--json", "--quiet")
    assert code == 0
    assert json.loads(out)["lines"] == 22
    scores = BM25().matrix(list(asked), texts).numpy()
    for row, found in zip(lines(tmp_path / "mined.jsonl"), scores, strict=True):
        own = texts.index(asked[row["query"]])
        best = np.sort(np.delete(found, own))[::-1][:4]
        np.testing.assert_allclose(row["negative_scores"], best, rtol=1e-5)
        assert row["positive_scores"] == pytest.approx([found[own]], rel=1e-5)


def test_another_margin_encodes_and_scores_nothing(run, encoder, data, tmp_path, monkeypatch):
    class Lengths(torch.nn.Module):
        calls = 0

        def predict(self, pairs, **_):
            Lengths.calls += len(pairs)
            return np.array([len(d) - 3.0 * abs(len(q) - len(d) // 2) for q, d in pairs], dtype=np.float32)

    monkeypatch.setattr("gradatim.inference.search.reranking.load_reranker", lambda *a: Lengths())
    options = ("--model", encoder, "--rerank", "any", "--format", "triplets", "--json", "--quiet")
    first = json.loads(run(*COMMON, *options, "--margin", "absolute:1")[1])
    assert first["asked"] == Lengths.calls > 0
    before = Lengths.calls
    monkeypatch.setattr(text_encoder, "_encode", None)  # any encoding from here on is an error
    code, out, err = run(*COMMON, *options, "--margin", "absolute:0.5")
    assert (code, err) == (0, "")
    assert Lengths.calls == before
    assert json.loads(out)["asked"] == 0
    ranker = Lengths()
    for row in lines(tmp_path / "mined.jsonl"):
        right, wrong = ranker.predict([(row["query"], row["positive"]), (row["query"], row["negative"])])
        assert row["label"] == pytest.approx(float(right - wrong))
        assert row["label"] >= 0.5


def test_rows_are_read_by_compare(run, data, encoder, tmp_path):
    from gradatim.compare.readers.pairs import read_pairs

    assert run(*COMMON, "--model", encoder, "--quiet")[0] == 0
    read = read_pairs(tmp_path / "mined.jsonl")
    assert len(read.queries) == 22
    assert all(len(found) == 4 for found in read.negatives.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--margin", "wide"), '--margin "wide" is unknown'),
        (("--margin", "relative:1.5"), "rho must lie in (0, 1]"),
        (("--format", "csv"), "use rows or triplets"),
        (("--range-max", "3"), "--range-max 3 leaves fewer than --negatives 4"),
        (("--out", "nowhere/x.jsonl"), "a folder that exists"),
        (("--model", "/nowhere"), "is no folder"),
        (("--data", "absent"), "absent"),
        (("--rerank", "./absent"), "no such folder"),
        (("--rerank", "./encoder"), "is an encoder, no cross-encoder; give it as --model"),
        (("--margin", "absolute:3"), "leaves no candidate to 22 of 22 queries"),
        (("--margin", "absolute:3"), "try --several max"),
    ],
)
def test_errors_are_one_line(run, data, encoder, tmp_path, arguments, message):
    code, out, err = run(*COMMON, "--model", encoder, "--quiet", *arguments)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err
    assert not (tmp_path / "mined.jsonl").exists()


class Counting:
    asked = 0

    def predict(self, pairs, **_):
        Counting.asked += len(pairs)
        return np.arange(len(pairs), dtype=np.float32)


def test_cached_scores_survive_and_damage_is_set_aside(tmp_path):
    one = CachedScores(Counting(), "model", tmp_path)
    found = one.score(["q", "r"], [["a", "b"], ["a", "c"]])
    assert one.score(["q"], [["b", "a"]]).tolist() == [[1.0, 0.0]]
    one.save()
    before = Counting.asked
    again = CachedScores(Counting(), "model", tmp_path)
    torch.testing.assert_close(again.score(["q", "r"], [["a", "b"], ["a", "c"]]), found)
    assert Counting.asked == before
    assert (again.asked, again.remembered) == (0, 4)
    assert CachedScores(Counting(), "another", tmp_path)._known == {}
    whole = one.file.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(min(len(whole), 200))] = rng.integers(256)
        one.file.write_bytes(bytes(damaged[: len(whole) if trial % 3 else rng.integers(len(whole))]))
        CachedScores(Counting(), "model", tmp_path)  # an empty memory or another key, never a crash


def test_a_digest_tells_weights_apart():
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert weights_digest(one) == weights_digest(one) != weights_digest(two)
