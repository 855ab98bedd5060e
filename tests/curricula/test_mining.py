"""Mining against brute force, against sentence-transformers' own miner, and its promises one by one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.curricula import (
    AbsoluteMargin,
    AdaptiveMargin,
    RelativeMargin,
    TeacherEnsemble,
    mine_negatives,
    mine_rows,
    nearest_rows,
)
from tiny_encoder import WORDS, tiny_encoder

MARGINS = [
    None,
    AbsoluteMargin(0.1),
    RelativeMargin(0.8),
    AdaptiveMargin(0.7),
    AdaptiveMargin(2.0, 0.0, 0.06),
    AdaptiveMargin(0.1, 0.15, 0.2),
]


def vectors(rows: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def by_hand(queries, corpus, positives, margin, k, range_max, range_min=0, several="min"):
    """The definition, query by query, in float64 lists."""
    found = []
    for q, own in zip(queries.double(), positives, strict=True):
        scores = (corpus.double() @ q).tolist()
        of_own = [scores[p] for p in own]
        t = {"min": min, "max": max, "mean": np.mean}[several](of_own)
        near = sorted((i for i in range(len(scores)) if i not in own), key=lambda i: (-scores[i], i))
        near = near[range_min:range_max]
        if isinstance(margin, AbsoluteMargin):
            highest = t - margin.delta
        elif isinstance(margin, RelativeMargin):
            highest = t - (1 - margin.rho) * abs(t)
        elif isinstance(margin, AdaptiveMargin):
            m = margin.kappa * np.std([scores[i] for i in near])
            highest = t - min(max(m, margin.least), margin.most)
        else:
            highest = np.inf
        passed = [i for i in near if scores[i] <= highest]
        found.append((passed[:k], len(near), len(near) - len(passed)))
    return found


@pytest.mark.parametrize("margin", MARGINS, ids=str)
@pytest.mark.parametrize("several", ["min", "mean", "max"])
@pytest.mark.filterwarnings("ignore:.*similarity of 0 or less")
def test_agrees_with_the_definition(margin, several):
    queries, corpus = vectors(40, seed=1), vectors(300, seed=2)
    near = (queries @ corpus.T).topk(3, dim=1).indices.tolist()
    positives = [row[: 1 + i % 3] for i, row in enumerate(near)]
    mined = mine_rows(
        queries,
        corpus,
        positives,
        margin,
        5,
        30,
        2,
        several=several,
        chunk_size=7,
        doc_chunk=50,
        most_emptied=1,
    )
    expected = by_hand(queries, corpus, positives, margin, 5, 30, 2, several)
    for row, scores, (wanted, *_) in zip(mined.rows, mined.scores, expected, strict=True):
        assert row[scores.isfinite()].tolist() == wanted
    assert mined.report.candidates == sum(n for _, n, _ in expected) == 40 * 28
    assert mined.report.dropped == sum(n for _, _, n in expected)
    assert mined.report.padded == sum(5 - len(wanted) for wanted, *_ in expected)
    assert mined.report.kept + mined.report.dropped == mined.report.candidates
    margins = (mined.positive[:, None] - mined.scores)[mined.scores.isfinite()].numpy()
    np.testing.assert_allclose(mined.report.margin_quantiles, np.quantile(margins, [0, 0.25, 0.5, 0.75, 1]))


@given(st.integers(1, 25), st.integers(2, 60), st.integers(1, 12), st.integers(1, 30), st.integers(1, 70))
@settings(max_examples=40, deadline=None)
def test_running_top_k_is_the_top_k_of_the_whole_matrix(queries, docs, k, query_chunk, doc_chunk):
    q, d = vectors(queries, seed=queries), vectors(docs, seed=docs)
    parts = list(nearest_rows(q, d, k, query_chunk, doc_chunk))
    scores, columns = torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])
    best = (q @ d.T).sort(dim=1, descending=True, stable=True)
    assert [p[0] for p in parts] == list(range(0, queries, query_chunk))
    torch.testing.assert_close(scores, best.values[:, : min(k, docs)])
    torch.testing.assert_close((q @ d.T).gather(1, columns), scores)


@pytest.mark.parametrize("sampling", ["top", "random"])
@pytest.mark.parametrize("margin", MARGINS, ids=str)
@pytest.mark.filterwarnings("ignore:.*similarity of 0 or less")
def test_block_sizes_change_nothing(sampling, margin):
    queries, corpus = vectors(33, seed=3), vectors(200, seed=4)
    positives = [[i] for i in range(33)]
    options = {"margin": margin, "num_negatives": 4, "range_max": 20, "sampling": sampling, "most_emptied": 1}
    one = mine_rows(queries, corpus, positives, **options)
    for chunk, docs in ((1, 200), (5, 13), (33, 64)):
        two = mine_rows(queries, corpus, positives, chunk_size=chunk, doc_chunk=docs, **options)
        assert torch.equal(one.rows, two.rows)
        assert one.report == two.report or np.allclose(
            one.report.margin_quantiles, two.report.margin_quantiles, atol=1e-6
        )


def test_random_sampling_draws_among_what_passed_and_follows_the_seed():
    queries, corpus = vectors(50, seed=5), vectors(300, seed=6)
    positives = [[int(i)] for i in (queries @ corpus.T).argmax(dim=1)]
    allowed = by_hand(queries, corpus, positives, RelativeMargin(0.9), 40, 40)
    draws = [
        mine_rows(queries, corpus, positives, RelativeMargin(0.9), 5, 40, sampling="random", seed=seed).rows
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    for rows in draws:
        for row, (wanted, *_) in zip(rows.tolist(), allowed, strict=True):
            assert set(row) <= set(wanted) or len(wanted) < 5
            assert len(set(row)) == 5
    # Every place of the candidate list is drawn about equally often.
    places = np.zeros(40)
    for seed in range(60):
        mined = mine_rows(queries, corpus, positives, None, 5, 40, sampling="random", seed=seed)
        naive = by_hand(queries, corpus, positives, None, 40, 40)
        for row, (wanted, *_) in zip(mined.rows.tolist(), naive, strict=True):
            places[[wanted.index(r) for r in row]] += 1
    assert abs(places / places.sum() - 1 / 40).max() < 0.005


def test_padding_is_counted_random_and_never_a_positive():
    queries, corpus = vectors(20, seed=7), vectors(30, seed=8)
    positives = [[i, i + 1] for i in range(20)]
    mined = mine_rows(queries, corpus, positives, AbsoluteMargin(10.0), 4, 10, most_emptied=1)
    assert mined.report.padded == 80
    assert mined.report.queries_padded == mined.report.queries_emptied == 20
    assert mined.scores.isnan().all()
    for i, row in enumerate(mined.rows.tolist()):
        assert len(set(row)) == 4
        assert not set(row) & set(positives[i])
    other = mine_rows(queries, corpus, positives, AbsoluteMargin(10.0), 4, 10, most_emptied=1, seed=1)
    assert not torch.equal(mined.rows, other.rows)


def test_a_corpus_too_small_leaves_empty_places():
    mined = mine_rows(vectors(2), vectors(3, seed=1), [[0], [1, 2]], None, 4, 5)
    assert sorted(r for r in mined.rows[0].tolist() if r >= 0) == [1, 2]
    assert mined.rows[1].tolist() == [0, -1, -1, -1]
    assert mined.report.empty == 5
    assert mined.report.padded == 0


def test_too_many_emptied_queries_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"AbsoluteMargin.* 20 of 20 queries .*0/25/50.*smaller margin"):
        mine_rows(vectors(20), vectors(30, seed=8), [[i] for i in range(20)], AbsoluteMargin(10.0), 4, 10)


def test_half_precision_and_rescoring():
    queries, corpus = vectors(12, 32, seed=9), vectors(80, 32, seed=10)
    positives = [[i] for i in range(12)]
    half = mine_rows(queries.bfloat16(), corpus.bfloat16(), positives, None, 5, 20)
    again = mine_rows(queries.bfloat16().float(), corpus.bfloat16().float(), positives, None, 5, 20)
    assert torch.equal(half.rows, again.rows)

    def reversed_order(begin, columns):
        return torch.full((len(columns),), 100.0), columns.float()

    mined = mine_rows(queries, corpus, positives, AbsoluteMargin(50.0), 5, 79, rescore=reversed_order)
    for i, row in enumerate(mined.rows.tolist()):
        assert row == [r for r in range(50, -1, -1) if r != i][:5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_negatives": 0}, "num_negatives=0"),
        ({"range_max": 3}, "leave fewer than num_negatives=7"),
        ({"sampling": "best"}, "sampling='best'"),
        ({"several": "median"}, "several='median'"),
        ({"positives": [[0]]}, "2 queries but 1 entries"),
        ({"positives": [[0], []]}, "query 1 has no positive"),
        ({"queries": torch.full((2, 8), torch.nan)}, "not finite"),
    ],
)
def test_bad_options_of_rows(options, message):
    good = {"queries": vectors(2), "corpus": vectors(30, seed=1), "positives": [[0], [1]]}
    with pytest.raises(ValueError, match=message):
        mine_rows(**{**good, **options})


def test_margins_refuse_what_makes_no_sense():
    for rho in (0.0, -1.0, 1.01):
        with pytest.raises(ValueError, match="rho must lie in"):
            RelativeMargin(rho)
    with pytest.raises(ValueError, match="kappa"):
        AdaptiveMargin(-0.1)
    with pytest.raises(ValueError, match=r"least=0\.5 and most=0\.1"):
        AdaptiveMargin(1.0, 0.5, 0.1)
    with pytest.raises(ValueError, match="finite"):
        AbsoluteMargin(float("nan"))


def test_a_negative_positive_similarity_widens_the_relative_margin_and_warns():
    with pytest.warns(UserWarning, match="1 of 2 positives"):
        highest = RelativeMargin(0.9).highest(
            torch.tensor([0.5, -0.5]), torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool)
        )
    torch.testing.assert_close(highest, torch.tensor([0.45, -0.55]))


# --- Texts -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("model"), layers=2)


def sentences(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return list(dict.fromkeys(" ".join(rng.choice(WORDS, size=rng.integers(3, 9))) for _ in range(count)))


@pytest.fixture(scope="module")
def texts():
    """Queries that are their positive less its last word, so that positives score well above the rest."""
    corpus = sentences(160, 0)
    positives = [corpus[3 * i] for i in range(30)]
    return [" ".join(text.split()[:-1]) for text in positives], positives, corpus


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (None, {}),
        (RelativeMargin(0.99), {"relative_margin": 0.01}),
        (RelativeMargin(0.97), {"relative_margin": 0.03}),
        (AbsoluteMargin(0.05), {"absolute_margin": 0.05}),
    ],
)
def test_same_negatives_as_the_librarys_miner(model, texts, ours, theirs):
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    queries, positives, corpus = texts
    stock = mine_hard_negatives(
        Dataset.from_dict({"query": queries, "positive": positives}),
        model,
        corpus=corpus,
        range_max=100,
        num_negatives=5,
        output_format="n-tuple",
        verbose=False,
        **theirs,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        mined, report = mine_negatives(
            queries,
            positives,
            corpus,
            model,
            margin=ours,
            num_negatives=5,
            return_report=True,
            most_emptied=1,
        )
    # The library leaves out queries with too few; ours fills them up and says how many.
    assert len(stock) == 30 - report.queries_padded
    assert len(stock) >= 10
    by_query = {row["query"]: row for row in mined}
    for row in stock:
        mine = by_query[row["query"]]
        assert row["positive"] == mine["doc_1"]
        assert [row[f"negative_{i}"] for i in range(1, 6)] == [mine[f"doc_{i}"] for i in range(2, 7)]


def test_several_positives_agree_with_the_library(model, texts):
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    queries, firsts, corpus = texts
    near = mine_negatives(queries, firsts, corpus, model, margin=None, num_negatives=2)
    several = zip(firsts, near["doc_2"], near["doc_3"], strict=True)
    positives = [list(own)[: 1 + i % 3] for i, own in enumerate(several)]
    pairs = [(q, p) for q, own in zip(queries, positives, strict=True) for p in own]
    stock = mine_hard_negatives(
        Dataset.from_dict({"query": [q for q, _ in pairs], "positive": [p for _, p in pairs]}),
        model,
        corpus=corpus,
        range_max=100,
        num_negatives=4,
        absolute_margin=0.02,
        output_format="n-tuple",
        verbose=False,
    )
    mined = mine_negatives(queries, positives, corpus, model, margin=AbsoluteMargin(0.02), num_negatives=4)
    by_query = {row["query"]: row for row in mined}
    assert mined["label"][2] == [1, 1, 1, 0, 0, 0, 0]
    assert len(stock) > 20
    for row in stock:
        mine = by_query[row["query"]]
        negatives = [mine[f"doc_{j + 1}"] for j, label in enumerate(mine["label"]) if label == 0]
        assert [row[f"negative_{i}"] for i in range(1, 5)] == negatives


def test_known_positives_and_their_duplicates_are_never_negatives(model, texts):
    queries, _, corpus = texts
    near = mine_negatives(queries, corpus[:30], corpus, model, margin=None, num_negatives=2)
    positives = [[p, a, b] for p, a, b in zip(corpus[:30], near["doc_2"], near["doc_3"], strict=True)]
    mined = mine_negatives(
        [*queries, queries[0]],
        [*positives, ["a text of its own"]],
        [*corpus, *corpus[:50]],  # every text of the first fifty twice
        model,
        margin=None,
        max_positives=1,
        num_negatives=7,
    )
    for row, own in zip(mined, [*positives, [*positives[0], "a text of its own"]], strict=True):
        negatives = [row[f"doc_{i}"] for i in range(2, 9)]
        assert not set(negatives) & set(own)
        assert len(set(negatives)) == 7
    assert mined[30]["doc_1"] == "a text of its own"


def test_mappings_and_lists_agree(model, texts):
    queries, positives, corpus = texts
    ids = {text: f"d{i}" for i, text in enumerate(corpus)}
    one = mine_negatives(queries, positives, corpus, model, num_negatives=3, most_emptied=1)
    two = mine_negatives(
        {f"q{i}": q for i, q in enumerate(queries)},
        {f"q{i}": [ids[p]] for i, p in enumerate(positives)},
        {ids[text]: text for text in corpus},
        model,
        num_negatives=3,
        most_emptied=1,
    )
    assert one.to_list() == two.to_list()


def test_output_forms_and_scores(model, texts):
    queries, positives, corpus = texts
    options = {"margin": None, "num_negatives": 3}
    scored = mine_negatives(queries, positives, corpus, model, label="scores", **options)
    both = mine_negatives(queries, positives, corpus, model, label="both", **options)
    listed = mine_negatives(queries, positives, corpus, model, output="labelled-list", **options)
    vectors_q, vectors_d = model.encode(queries), model.encode(corpus)
    for i, row in enumerate(scored):
        docs = [row[f"doc_{j}"] for j in range(1, 5)]
        q = vectors_q[i] / np.linalg.norm(vectors_q[i])
        d = np.stack([vectors_d[corpus.index(text)] for text in docs])
        expected = d @ q / np.linalg.norm(d, axis=1)
        np.testing.assert_allclose(row["label"], expected, atol=1e-5)
        assert both[i]["label"] == [row["label"], [1, 0, 0, 0]]
        assert listed[i]["docs"] == docs
        assert listed[i]["label"] == [1, 0, 0, 0]


class Backwards:
    """A re-ranker that likes long texts."""

    def predict(self, pairs, **options):
        return np.array([float(len(d)) for _, d in pairs])


def test_a_cross_encoder_rescores_before_the_filter(model, texts):
    queries, _, corpus = texts
    longest = sorted(corpus, key=len)[-40]
    mined = mine_negatives(
        queries,
        [longest] * len(queries),
        corpus,
        model,
        teacher=Backwards(),
        margin=AbsoluteMargin(3.0),
        num_negatives=4,
        range_max=159,
        label="scores",
    )
    for row in mined:
        lengths = row["label"]
        assert lengths[0] == len(longest)
        assert lengths[1:] == sorted(lengths[1:], reverse=True)
        assert max(lengths[1:]) <= len(longest) - 3
        allowed = sorted((len(t) for t in corpus if len(t) <= len(longest) - 3), reverse=True)
        assert lengths[1:] == allowed[:4]


def test_an_ensemble_rescores_positives_and_candidates_together(model, texts):
    queries, positives, corpus = texts
    ensemble = TeacherEnsemble([model])
    mined, report = mine_negatives(
        queries[:5],
        positives[:5],
        corpus,
        model,
        teacher=ensemble,
        margin=None,
        num_negatives=3,
        range_max=20,
        return_report=True,
    )
    # One retriever standardised: the order is the retriever's own.
    plain = mine_negatives(
        queries[:5], positives[:5], corpus, model, margin=None, num_negatives=3, range_max=20
    )
    assert [r["doc_2"] for r in mined] == [r["doc_2"] for r in plain]
    assert report.candidates == 5 * 20


def test_the_losses_take_it_unchanged(model, texts):
    from gradatim.losses import MultiPositiveRankingLoss, SoftLabelRankingLoss
    from tiny_encoder import collate

    queries, positives, corpus = texts
    columns = mine_negatives(
        queries[:6], positives[:6], corpus, model, margin=None, num_negatives=3
    ).to_dict()
    assert MultiPositiveRankingLoss(model)(*collate(model, columns)).isfinite()
    columns = mine_negatives(
        queries[:6], positives[:6], corpus, model, margin=None, num_negatives=3, label="both"
    ).to_dict()
    parts = SoftLabelRankingLoss(model, hard_targets="mask", teacher_temperature=0.005)(
        *collate(model, columns)
    )
    assert sum(parts.values()).isfinite()


def test_places_that_stay_empty_are_labelled_so(model):
    options = {"margin": None, "num_negatives": 3, "range_max": 5}
    data = mine_negatives(
        ["sum", "mean"], [["sum a"], ["mean a", "sum"]], ["sum a", "mean a", "sum"], model, **options
    )
    assert data["label"] == [[1, 0, 0, -1, -1], [1, 1, 0, -1, -1]]
    assert data["doc_4"] == data["doc_5"] == ["sum a", "mean a"]
    listed = mine_negatives(["sum"], ["sum a"], ["sum a", "mean a"], model, output="labelled-list", **options)
    assert listed["docs"] == [["sum a", "mean a"]]
    assert listed["label"] == [[1, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], ["b"], []), "1 queries and 0 passages"),
        ((["a", "b"], ["b"], ["c"]), "2 queries but 1 entries"),
        (({"q": "a"}, {"q": ["d9"]}, {"d1": "x"}), "positive 'd9' of query 'q'"),
        (({"q": "a"}, ["b"], {"d1": "x"}), "by query id"),
        ((["a"], {"q": ["b"]}, ["b"]), "need queries by id"),
        ((["a"], [[]], ["b"]), "query 0 has no positive"),
    ],
)
def test_bad_texts(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        mine_negatives(*arguments, model)


def test_bad_options(model, texts):
    for option, message in (
        ({"output": "triplet"}, "output='triplet'"),
        ({"label": "binary"}, "label='binary'"),
        ({"max_positives": 0}, "max_positives=0"),
        ({"teacher": object()}, "neither score"),
    ):
        with pytest.raises(ValueError, match=message):
            mine_negatives(*texts, model, **option)
