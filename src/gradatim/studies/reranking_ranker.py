"""Paper 08's bench: a small ranker on frozen sentence embeddings, trained on pairs of a BM25 run.

A pair is described by [20 q*d, 5 |q - d|], the embeddings' products and distances; the ranker is one hidden
layer on top. A trial takes a fraction of a second, so that heuristics, losses and controls can be crossed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gradatim.bench.study import Scale
from gradatim.curricula.difficulty import pairwise_difficulty
from gradatim.curricula.linear import LinearCurriculum
from gradatim.curricula.run_pairs import heuristic_table, ranked_documents, sample_pairs
from gradatim.losses.pairwise_curriculum import PairwiseCurriculumLoss
from gradatim.losses.pointwise_curriculum import PointwiseCurriculumLoss
from gradatim.models.text_encoder import encode_texts
from gradatim.tasks.annotations import query_generator
from gradatim.tasks.docstrings import docstring_retrieval
from gradatim.tasks.retrieval import RetrievalTask, bm25_run

PASSAGE_TOKENS = 96
DEPTH = 100
TRAIN, VALIDATION, TEST = 1_600, 300, 800
SPLIT_SEED = 1


@dataclass(frozen=True)
class Bench:
    """The docstring task, its BM25 run, embeddings by id, and the split of its queries."""

    task: RetrievalTask
    run: Mapping[str, Mapping[str, float]]
    query_vectors: Mapping[str, Tensor]
    passages: Tensor
    row_of: Mapping[str, int]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def features(self, queries: Sequence[str], docs: Sequence[str]) -> Float[Tensor, "pairs 2*dim"]:
        """What the ranker sees of (query, document) pairs; BM25's scores are not among it."""
        q = torch.stack([self.query_vectors[query] for query in queries])
        d = self.passages[[self.row_of[doc] for doc in docs]]
        return torch.cat([20.0 * q * d, 5.0 * (q - d).abs()], dim=1)


@lru_cache(maxsize=2)
def bench(model: str) -> Bench:
    """Encodes the corpus (once per machine: the cache is shared) and splits the queries BM25 can answer."""
    task = docstring_retrieval()
    run = bm25_run(task, DEPTH, keep_scores=True)
    found = np.array([query for query in task.queries if query in run[query]], dtype=object)
    np.random.default_rng(SPLIT_SEED).shuffle(found)
    ids = [str(query) for query in found[: TRAIN + VALIDATION + TEST]]
    passages = encode_texts(list(task.corpus.values()), model, max_seq_length=PASSAGE_TOKENS)
    queries = encode_texts([task.queries[query] for query in ids], model, max_seq_length=PASSAGE_TOKENS)
    return Bench(
        task=task,
        run={query: run[query] for query in ids},
        query_vectors=dict(zip(ids, torch.from_numpy(queries), strict=True)),
        passages=torch.from_numpy(passages),
        row_of={doc: i for i, doc in enumerate(task.doc_ids)},
        train=tuple(ids[:TRAIN]),
        validation=tuple(ids[TRAIN : TRAIN + VALIDATION]),
        test=tuple(ids[TRAIN + VALIDATION :]),
    )


def annotate(b: Bench, rho: float, seed: int) -> dict[str, dict[str, int]]:
    """The training judgements: a query's own passage or, with probability rho, any document of its run.

    An object's links count as not judged: the ranker learns to find the one passage.
    """
    judged: dict[str, dict[str, int]] = {}
    for query in b.train:
        rng = query_generator(seed, -1, query)
        wrong = rng.random() < rho
        docs = ranked_documents(query, b.run[query])
        judged[query] = {docs[rng.integers(len(docs))] if wrong else query: 1}
    return judged


@dataclass(frozen=True)
class Stream:
    """A seed's training pairs in order, and the heights of both documents by every heuristic."""

    queries: tuple[str, ...]
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    heights: Mapping[str, Float[Tensor, "pairs 2"]]


@lru_cache(maxsize=3)
def _tables(model: str) -> dict[str, dict[str, dict[str, float]]]:
    b = bench(model)
    run = {query: b.run[query] for query in b.train}
    return {name: heuristic_table(run, b.train, name) for name in ("recip", "norm", "kde")}


# Every arm of a seed trains on the same pairs: an arm differs from another in its weights alone.
@lru_cache(maxsize=128)
def stream(model: str, rho: float, seed: int, count: int) -> Stream:
    """`count` pairs, drawn for this seed from judgements made for this seed."""
    b = bench(model)
    pairs = sample_pairs(b.run, annotate(b, rho, seed), seed, count=count)
    queries, positives = tuple(p.query for p in pairs), tuple(p.positive for p in pairs)
    negatives = tuple(p.negatives[0] for p in pairs)
    heights = {
        name: torch.tensor(
            [[table[q][d], table[q][n]] for q, d, n in zip(queries, positives, negatives, strict=True)]
        )
        for name, table in _tables(model).items()
    }
    return Stream(queries, positives, negatives, heights)


@dataclass(frozen=True)
class Recipe:
    """What an arm is made of. `heuristic` None: no curriculum.

    `shuffled` deals the heights out again among the stream's positives and among its negatives: weights as
    large as the curriculum's, with nothing known of the example.
    """

    loss: str
    rho: float
    heuristic: str | None = None
    end: int = 5
    anti: bool = False
    weighting: str = "sample"
    normalize: bool = False
    shuffled: bool = False


@dataclass(frozen=True)
class Candidates:
    """Queries with up to `width` documents, features computed; column 0 is the right document.

    Places that `used` marks False are filled with the right document itself and never count.
    """

    features: Float[Tensor, "places features"]
    used: Bool[Tensor, "queries width"]

    def ranks(self, ranker: nn.Module) -> Int[Tensor, " queries"]:
        """The right document's rank, from 1; equal scores count against it."""
        with torch.no_grad():
            scores = ranker(self.features).reshape(self.used.shape)
        above = (scores[:, 1:] >= scores[:, :1]) & self.used[:, 1:]
        return 1 + above.sum(dim=1)


@lru_cache(maxsize=8)
def candidates(model: str, part: str, count: int, width: int) -> Candidates:
    """The first `count` queries of a part ("test", "validation") with the run's first `width` documents.

    A right document that stands deeper takes the last place, so that re-ranking can always find it.
    """
    b = bench(model)
    queries, docs, used = [], [], []
    for query in getattr(b, part)[:count]:
        top = [doc for doc in ranked_documents(query, b.run[query]) if doc != query][: width - 1]
        spare = width - 1 - len(top)
        docs += [query, *top, *[query] * spare]
        queries += [query] * width
        used.append([True] * (1 + len(top)) + [False] * spare)
    return Candidates(b.features(queries, docs), torch.tensor(used))


def weight_shares(recipe: Recipe, pairs: Stream) -> dict[str, float]:
    """Mean weight, before any fading, of pairs with the right document as positive and of mislabelled ones.

    With the pointwise loss these are the positives alone, and the negatives' mean weight stands beside them.
    """
    if recipe.heuristic is None or recipe.shuffled:
        return {}
    right = torch.tensor([q == d for q, d in zip(pairs.queries, pairs.positives, strict=True)])
    heights = pairs.heights[recipe.heuristic]
    easy = pairwise_difficulty(heights[:, 0], heights[:, 1:]) if recipe.loss == "pair" else heights[:, 0]
    shares = {"weight_right": float(easy[right].mean())}
    if not bool(right.all()):
        shares["weight_wrong"] = float(easy[~right].mean())
    if recipe.loss == "point":
        shares["weight_negative"] = float(1.0 - heights[:, 1].mean())
    return shares


def labels(recipe: Recipe, heights: Float[Tensor, "pairs 2"], seed: int) -> Tensor:
    """The label column: D of each pair, or [relevance, H] of both documents of each pair."""
    if recipe.shuffled:
        g = torch.Generator().manual_seed(seed)
        heights = torch.stack(
            [column[torch.randperm(len(heights), generator=g)] for column in heights.T], dim=1
        )
    if recipe.loss == "pair":
        return pairwise_difficulty(heights[:, 0], heights[:, 1:])
    relevance = torch.tensor([1.0, 0.0]).expand_as(heights)
    return torch.stack([relevance, heights], dim=-1)


@dataclass(frozen=True)
class Course:
    """Ranks of the right document after every iteration, on test and validation queries."""

    test: Int[Tensor, "iterations queries"]
    validation: Int[Tensor, "iterations queries"]
    shares: Mapping[str, float]


def new_ranker(width: int, seed: int) -> nn.Sequential:
    """The ranker with PyTorch's initial weights of this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 1))


def train_ranker(recipe: Recipe, seed: int, scale: Scale) -> Course:
    """Trains the ranker on its stream; a step scores `batch` pairs, an iteration is `steps` steps."""
    model, batch, steps = str(scale["model"]), int(scale["batch"]), int(scale["steps"])
    iterations = int(scale["iterations"])
    b, pairs = bench(model), stream(model, recipe.rho, seed, iterations * steps * batch)
    test = candidates(model, "test", int(scale["test_queries"]), int(scale["test_top"]))
    held_out = candidates(model, "validation", int(scale["validation_queries"]), int(scale["validation_top"]))
    curriculum = None
    if recipe.heuristic is not None:
        curriculum = LinearCurriculum(
            recipe.end, iteration_size=steps * batch, anti=recipe.anti, normalize=recipe.normalize
        )
    pairwise = recipe.loss == "pair"
    objective: PairwiseCurriculumLoss | PointwiseCurriculumLoss
    if pairwise:
        objective = PairwiseCurriculumLoss(None, curriculum=curriculum, weighting=recipe.weighting)
    else:
        objective = PointwiseCurriculumLoss(None, curriculum=curriculum, weighting=recipe.weighting)
    known = labels(recipe, pairs.heights[recipe.heuristic or "norm"], seed)
    x = torch.stack(
        [b.features(pairs.queries, pairs.positives), b.features(pairs.queries, pairs.negatives)], dim=1
    )
    ranker = new_ranker(x.shape[2], seed)
    optimizer = torch.optim.Adam(ranker.parameters(), lr=float(scale["lr"]))
    after_test, after_validation = [], []
    for step, rows in enumerate(torch.arange(len(x)).split(batch), start=1):
        scores = ranker(x[rows]).squeeze(-1)
        objective.position = (step - 1) * batch
        if pairwise:
            loss = objective.compute_loss_from_scores(scores, known[rows])
        else:
            loss = objective.compute_loss_from_scores(scores.flatten(), known[rows].flatten(0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % steps == 0:
            after_test.append(test.ranks(ranker))
            after_validation.append(held_out.ranks(ranker))
    return Course(torch.stack(after_test), torch.stack(after_validation), weight_shares(recipe, pairs))


def mrr(ranks: Int[Tensor, "*iterations queries"], cut: int = 10) -> Float[Tensor, "*iterations"]:
    """MRR@10 by the right document's ranks."""
    return torch.where(ranks <= cut, 1.0 / ranks, 0.0).mean(dim=-1)


def precision(ranks: Int[Tensor, "*iterations queries"]) -> Float[Tensor, "*iterations"]:
    """P@1 by the right document's ranks."""
    return (ranks == 1).float().mean(dim=-1)


def first_stage_ranks(scale: Scale, by: str) -> Int[Tensor, " queries"]:
    """Ranks of the test queries' right documents by BM25 (last where deeper) or by the encoder's cosine."""
    b = bench(str(scale["model"]))
    top = int(scale["test_top"])
    ranks = []
    for query in b.test[: int(scale["test_queries"])]:
        docs = ranked_documents(query, b.run[query])
        if by == "bm25":
            ranks.append(min(docs.index(query) + 1, top))
            continue
        shown = [query, *[doc for doc in docs if doc != query][: top - 1]]
        d = nn.functional.normalize(b.passages[[b.row_of[doc] for doc in shown]], dim=1)
        similarity = d @ b.query_vectors[query]
        ranks.append(1 + int((similarity[1:] >= similarity[0]).sum()))
    return torch.tensor(ranks)
