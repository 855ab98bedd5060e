"""Runs the compiled Paragraph Vector passes: shapes, threads, epochs, and inference of unseen documents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from gradatim.models.vocabulary import EncodedCorpus, Vocabulary

BLOCK = 8
"""Tokens of a document that share their noise words in the fast form of PV-DBOW."""

ROUNDINGS = {"straight_through": 1, "none": 2, "noise": 3}
COMBINES = {"mean": 0, "concat": 1, "ordered": 2}


@dataclass
class ParagraphWeights:
    """All that documents share.

    `outputs` [V, H + 1 + padding] ends each row with the bias and zeros; `projection` [bits, real] and
    `projection_bias` [bits] are W and c of Real-Binary; `words` [V, word_dim] and `mixing` [word_dim, bits]
    belong to PV-DM. Parts that a variant lacks have no rows.
    """

    outputs: Float[np.ndarray, "words columns"]
    projection: Float[np.ndarray, "bits real"]
    projection_bias: Float[np.ndarray, " bits"]
    words: Float[np.ndarray, "rows width"]
    mixing: Float[np.ndarray, "mixed code"]

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class ParagraphPlan:
    """The settings of `ParagraphVector` as its kernels take them."""

    size: int
    real_dim: int | None
    dm: bool
    how: int
    noise: float
    dropout: float
    negative: int
    block: int
    shared: int
    window: int
    combine: int
    word_dim: int
    lr: float
    doc_lr: float
    end_share: float
    epochs: int

    @property
    def vector_dim(self) -> int:
        """Components of a document vector."""
        return self.size if self.real_dim is None else self.real_dim

    @property
    def hidden(self) -> int:
        """Inputs of the softmax, without the bias."""
        if not self.dm:
            return self.size
        if self.combine == COMBINES["mean"]:
            return self.word_dim
        slots = 2 * self.window if self.combine == COMBINES["ordered"] else 1
        return self.size + slots * self.word_dim

    @property
    def init_scale(self) -> float:
        """Half the width of the uniform law of fresh document vectors: codes must not all start equal.

        Real ones start within +-1/D, as gensim's; within half of that ten passes leave them behind by 0.01 in
        how often the nearest neighbour shares the topic.
        """
        return 1.0 / self.size if self.how == 0 else 0.2

    def fresh_weights(self, vocabulary: Vocabulary, rng: np.random.RandomState) -> ParagraphWeights:
        """Zero output rows (as in word2vec), small random words, unit-variance projections."""
        real, V = self.real_dim, len(vocabulary)
        W = np.zeros((0, 1), np.float32)
        mixing = np.zeros((0, 1), np.float32)
        if self.dm:
            W = _uniform(rng, (V, self.word_dim), 1.0 / self.word_dim)
            if self.combine == COMBINES["mean"] and self.how != 0:
                mixing = _uniform(rng, (self.word_dim, self.size), 0.5 / self.size)
        return ParagraphWeights(
            outputs=np.zeros((V, padded(self.hidden + 1)), np.float32),
            projection=np.zeros((0, 1), np.float32)
            if real is None
            else np.asarray(rng.standard_normal((self.size, real)) / np.sqrt(real), np.float32),
            projection_bias=np.zeros(0 if real is None else self.size, np.float32),
            words=W,
            mixing=mixing,
        )

    def fresh_documents(self, n: int, rng: np.random.RandomState) -> np.ndarray:
        return _uniform(rng, (n, self.vector_dim), self.init_scale)


def _uniform(rng: np.random.RandomState, shape: tuple[int, int], half_width: float) -> np.ndarray:
    return np.asarray(rng.uniform(-half_width, half_width, shape), dtype=np.float32)


def padded(columns: int) -> int:
    """Columns up to a multiple of 16, a whole number of vector registers; what is added stays zero."""
    return -(-columns // 16) * 16


def train_paragraphs(
    corpus: EncodedCorpus,
    vocabulary: Vocabulary,
    plan: ParagraphPlan,
    weights: ParagraphWeights,
    documents: Float[np.ndarray, "docs dim"],
    sample: float,
    ns_exponent: float,
    rng: np.random.RandomState,
    n_jobs: int,
) -> None:
    """All epochs, in place. One thread is bitwise reproducible; several race on the shared rows (Hogwild).

    Raises FloatingPointError when a parameter is no longer finite after an epoch.
    """
    shards = corpus.shards(n_jobs)
    seeds = [rng.randint(0, 2**63 - 1, size=1, dtype=np.int64).astype(np.uint64) for _ in shards]
    run = _pass(corpus, vocabulary, plan, weights, documents, sample, ns_exponent)
    for epoch in range(plan.epochs):
        # A stream per epoch: one stream drawn on over epochs would repeat itself with its seed.
        tasks = [
            (first, last, epoch, True, seed + np.uint64(epoch))
            for (first, last), seed in zip(shards, seeds, strict=True)
        ]
        on_threads(run, tasks)
        if not all(np.isfinite(a).all() for a in (documents, *weights.arrays().values())):
            raise FloatingPointError(
                f"training diverged in epoch {epoch + 1}: lower lr={plan.lr:g} or doc_lr={plan.doc_lr:g}"
            )


def infer_paragraphs(
    corpus: EncodedCorpus,
    vocabulary: Vocabulary,
    plan: ParagraphPlan,
    weights: ParagraphWeights,
    sample: float,
    ns_exponent: float,
    n_jobs: int,
) -> Float[np.ndarray, "docs dim"]:
    """Vectors of unseen documents, everything shared frozen; a document without tokens gets zeros.

    The seed of a document is a hash of its word numbers: equal documents have equal vectors, whatever
    stands beside them and however many threads run.
    """
    bounds = corpus.offsets
    seeds = np.array(
        [document_seed(corpus.ids[a:b]) for a, b in pairwise(bounds)],
        dtype=np.uint64,
    )
    documents = np.zeros((len(corpus), plan.vector_dim), np.float32)
    for i, seed in enumerate(seeds):
        documents[i] = np.random.default_rng(seed).uniform(-plan.init_scale, plan.init_scale, plan.vector_dim)
    run = _pass(corpus, vocabulary, plan, weights, documents, sample, ns_exponent)
    on_threads(run, [(first, last, 0, False, seeds) for first, last in corpus.shards(n_jobs)])
    documents[np.diff(bounds) == 0] = 0.0
    return documents


def document_seed(ids: Shaped[np.ndarray, " tokens"]) -> int:
    """64 bits of BLAKE2b of a document's word numbers."""
    digest = hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def threads(n_jobs: int | None) -> int:
    """`n_jobs` as scikit-learn means it: None is 1, -1 all processors."""
    from joblib import effective_n_jobs

    return int(effective_n_jobs(n_jobs))


def on_threads(run: Callable[..., Any], tasks: list[tuple[Any, ...]]) -> list[Any]:
    """Runs the tasks side by side, one thread each (kernels hold no lock); the first failure is raised."""
    if len(tasks) == 1:
        return [run(*tasks[0])]
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(run, *task) for task in tasks]]


def _pass(
    corpus: EncodedCorpus,
    vocabulary: Vocabulary,
    plan: ParagraphPlan,
    weights: ParagraphWeights,
    documents: np.ndarray,
    sample: float,
    ns_exponent: float,
) -> Callable[..., Any]:
    from gradatim.models.compiled import sigmoid_table
    from gradatim.models.paragraph_kernels import paragraph_pass

    keep, noise, table = (
        vocabulary.keep_thresholds(float(sample)),
        vocabulary.noise(ns_exponent),
        sigmoid_table(),
    )
    w = weights

    def run(first: int, last: int, epoch: int, learn: bool, seeds: Any) -> Any:
        return paragraph_pass(
            corpus.ids, corpus.offsets, first, last, documents, w.outputs, w.projection, w.projection_bias,
            w.words, w.mixing, keep, noise.threshold, noise.other, table, plan.dm, plan.how, plan.noise,
            plan.dropout if learn else 0.0, plan.negative, plan.block, plan.shared, plan.window, plan.combine,
            plan.lr, plan.doc_lr, plan.end_share, epoch, plan.epochs, learn, np.atleast_1d(seeds),
        )  # fmt: skip

    return run
