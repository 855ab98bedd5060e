"""Meta-batches of few-shot concept learning, streamed or from a fixed pool, with a hold-out by meaning."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from gradatim.tasks.concept_examples import draw_examples
from gradatim.tasks.concept_grammar import ConceptGrammar
from gradatim.tasks.concepts import Concept
from gradatim.tasks.few_shot import Tasks, concatenate

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
CHUNK = 256
HOPELESS = 2000


@dataclass
class Rejections:
    """How many concepts the grammar gave, and why some of them became no task.

    Rejection changes the distribution of concepts: conjunctions that rarely hold vanish.
    """

    drawn: int = 0
    constant: int = 0
    too_few: int = 0
    other_split: int = 0
    last: str = field(default="", repr=False)

    @property
    def rate(self) -> float:
        """Share of the drawn concepts that no balanced set of examples could be drawn for."""
        return (self.constant + self.too_few) / max(1, self.drawn)


class ConceptTasks(IterableDataset[Tasks]):
    """An endless stream of meta-batches of Boolean concepts.

    Args:
        grammar: where concepts come from.
        tasks: T, tasks per meta-batch.
        support, query: (positive, negative) examples of each set; inputs are uniform among those of
            their label, and none occurs twice in a task, over support and query together.
        split: None draws from all concepts: training and test then share most of what they learn, since at
            8 features a third of the mass is on 16 literals. "train", "valid" and "test" hold out by meaning:
            a concept belongs to the one split that the hash of its truth table says, however it is written.
        shares, split_seed: the sizes of the three splits, and which way concepts fall. The literals, few and
            frequent, are dealt out in just these shares.
        pool_size: None streams fresh tasks; a number draws that many once and repeats them, each epoch in
            another order, as the paper does. Long training on a pool memorises it.
        seed, rank: batch k of worker v on rank r depends on (seed, r, v, k) alone; a pool on the seed alone.
        coding: inputs as -1 and +1 ("signed"), or 0 and 1 ("binary"). Labels are 0 and 1.
        tries: pools of 256 inputs searched for enough examples where the cube is too large to list.

    `rejections` counts what was drawn in vain. `state_dict` resumes at the next batch.

    Raises ValueError for sizes below 1, a set of one label only, shares that do not sum to 1, more examples
    than the cube has inputs, and, with the last concept and what it lacked, when concept after concept is
    rejected.
    """

    def __init__(
        self,
        grammar: ConceptGrammar,
        *,
        tasks: int = 16,
        support: tuple[int, int] = (5, 5),
        query: tuple[int, int] = (5, 5),
        split: str | None = None,
        shares: tuple[float, float, float] = (0.7, 0.1, 0.2),
        split_seed: int = 0,
        pool_size: int | None = None,
        seed: int = 0,
        rank: int = 0,
        coding: str = "signed",
        tries: int = 10,
    ) -> None:
        for name, value in (("tasks", tasks), ("tries", tries), ("pool_size", pool_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, pair in (("support", support), ("query", query)):
            if min(pair) < 1:
                raise ValueError(f"{name} needs examples of both labels, got (positive, negative) = {pair}")
        if split is not None and split not in SPLITS:
            raise ValueError(f"split must be None, {', '.join(map(repr, SPLITS))}, got {split!r}")
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(f"shares of train, valid and test must sum to 1, got {shares}")
        if seed < 0 or rank < 0:
            raise ValueError(f"seed and rank must not be negative, got {seed} and {rank}")
        if coding not in ("signed", "binary"):
            raise ValueError(f'coding must be "signed" or "binary", got {coding!r}')
        needs = sum(support) + sum(query)
        if grammar.n_features < 30 and needs > 1 << grammar.n_features:
            raise ValueError(
                f"{needs} different examples do not fit {1 << grammar.n_features} inputs of "
                f"{grammar.n_features} features; take fewer examples"
            )
        self.grammar, self.tasks, self.support, self.query = grammar, tasks, support, query
        self.split, self.shares, self.split_seed = split, shares, split_seed
        self.pool_size, self.seed, self.rank, self.coding, self.tries = pool_size, seed, rank, coding, tries
        self.rejections = Rejections()
        self._step = 0
        self._pool: Tasks | None = None

    @property
    def rejection_rate(self) -> float:
        """Share of the concepts drawn so far that were constant or had too few examples of a label."""
        return self.rejections.rate

    def __iter__(self) -> Iterator[Tasks]:
        while True:
            step, self._step = self._step, self._step + 1
            yield self.batch(step)

    def batch(self, step: int) -> Tasks:
        """The meta-batch of this step: a pure function of it."""
        worker = get_worker_info()
        index, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if self.pool_size is None:
            return self.draw(self.tasks, (self.seed, self.rank, index, step))
        pool = self.pool()
        # Worker v of n reads every n-th batch of one order; ranks have orders of their own.
        first = (step * workers + index) * self.tasks
        return pool[[self._place(first + k) for k in range(self.tasks)]]

    def pool(self) -> Tasks:
        """The fixed tasks of `pool_size`. Raises ValueError for a stream of fresh tasks."""
        if self.pool_size is None:
            raise ValueError("this stream has no pool: give pool_size")
        if self._pool is None:
            self._pool = self.draw(self.pool_size, (self.seed,))
        return self._pool

    def _place(self, k: int) -> int:
        assert self.pool_size is not None
        epoch, within = divmod(k, self.pool_size)
        return int(_order(self.pool_size, self.seed, self.rank, epoch)[within])

    def draw(self, count: int, key: Sequence[int]) -> Tasks:
        """`count` tasks that depend on the key of non-negative integers (and the settings) alone."""
        if count < 1:
            raise ValueError(f"draw at least one task, got {count}")
        rng = np.random.default_rng(np.random.SeedSequence([len(key), *key]))
        source = random.Random(int(rng.integers(1 << 62)))
        return concatenate(
            [self._chunk(min(CHUNK, count - first), source, rng) for first in range(0, count, CHUNK)]
        )

    def _chunk(self, count: int, source: random.Random, rng: np.random.Generator) -> Tasks:
        (s_pos, s_neg), (q_pos, q_neg) = self.support, self.query
        concepts: list[Concept] = []
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        missed = 0
        while len(concepts) < count:
            wanted = [self._accepted(source) for _ in range(count - len(concepts))]
            pos, neg, lacks = draw_examples(wanted, s_pos + q_pos, s_neg + q_neg, rng, self.tries)
            kept = [t for t, lack in enumerate(lacks) if not lack]
            for concept, lack in zip(wanted, lacks, strict=True):
                if lack:
                    self.rejections.too_few += 1
                    self.rejections.last = f"the concept {concept} has {lack}"
            missed = 0 if kept else missed + len(wanted)
            if missed >= HOPELESS:
                raise ValueError(f"{missed} concepts in a row had too few examples: {self.rejections.last}")
            concepts += [wanted[t] for t in kept]
            parts.append((pos[kept], neg[kept]))
        pos, neg = (np.concatenate([p[k] for p in parts]) for k in (0, 1))
        xs_s, ys_s = _mixed(pos[:, :s_pos], neg[:, :s_neg], rng)
        xs_q, ys_q = _mixed(pos[:, s_pos:], neg[:, s_neg:], rng)
        if self.coding == "signed":
            xs_s, xs_q = 2 * xs_s - 1, 2 * xs_q - 1
        return Tasks(xs_s, ys_s, xs_q, ys_q, tuple(concepts))

    def _accepted(self, source: random.Random) -> Concept:
        """The next concept that is not constant and belongs to the split."""
        for _ in range(HOPELESS):
            concept = self.grammar.sample(source)
            self.rejections.drawn += 1
            if concept.bits == 0 or concept.density == 1.0:
                self.rejections.constant += 1
            elif self.split is not None and self.split_of(concept) != self.split:
                self.rejections.other_split += 1
            else:
                return concept
        raise ValueError(
            f"{HOPELESS} concepts in a row were constant or belonged to another split than {self.split!r}; "
            f"the last was {concept}"
        )

    def split_of(self, concept: Concept) -> Split:
        """The one split that a concept belongs to, whatever formula says it."""
        found = concept.canonical_hash()
        place = _literal_places(self.grammar.n_features, self.split_seed).get(found)
        if place is None:
            place = _salted(found, self.split_seed)
        train, valid, _ = self.shares
        return "train" if place < train else "valid" if place < train + valid else "test"

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what its batches depend on."""
        settings = {
            "grammar": repr(self.grammar), "tasks": self.tasks, "support": list(self.support),
            "query": list(self.query), "split": self.split, "shares": list(self.shares),
            "split_seed": self.split_seed, "pool_size": self.pool_size, "seed": self.seed,
            "coding": self.coding, "tries": self.tries,
        }  # fmt: skip
        return {"step": self._step, "settings": settings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another stream of the same settings stood. Raises ValueError for other settings."""
        mine = self.state_dict()["settings"]
        different = sorted(k for k in mine if mine[k] != state["settings"].get(k))
        if different:
            raise ValueError(f"the state is of a stream with another {', '.join(different)}")
        self._step = int(state["step"])


def _mixed(pos: np.ndarray, neg: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [T, n, F] and labels [T, n] in float32, rows in random order."""
    inputs = np.concatenate([pos, neg], axis=1).astype(np.float32)
    labels = np.zeros(inputs.shape[:2], dtype=np.float32)
    labels[:, : pos.shape[1]] = 1.0
    order = np.argsort(rng.random(labels.shape), axis=1)
    return (
        torch.from_numpy(np.take_along_axis(inputs, order[:, :, None], axis=1)),
        torch.from_numpy(np.take_along_axis(labels, order, axis=1)),
    )


def _salted(digest: str, salt: int) -> float:
    """A number in [0, 1) that depends on the meaning of a concept and the salt alone."""
    found = hashlib.blake2b(f"{salt}:{digest}".encode(), digest_size=8).digest()
    return int.from_bytes(found, "little") / 2**64


@functools.lru_cache(maxsize=64)
def _literal_places(n_features: int, salt: int) -> dict[str, float]:
    """Evenly spaced places in [0, 1) for the literals, in the order of their salted hashes."""
    digests = [Concept(n_features, (code,)).canonical_hash() for code in range(2 * n_features)]
    ranked = sorted(digests, key=lambda digest: _salted(digest, salt))
    return {digest: (k + 0.5) / len(ranked) for k, digest in enumerate(ranked)}


@functools.lru_cache(maxsize=8)
def _order(size: int, seed: int, rank: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the pool."""
    return np.random.default_rng(np.random.SeedSequence([4, size, seed, rank, epoch])).permutation(size)
