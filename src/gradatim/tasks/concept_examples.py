"""Positive and negative inputs of many concepts at once: uniform, and none twice in a task.

Up to 10 features every input is a candidate. Beyond, candidates are a pool of fresh uniform inputs, and where
a concept's pool holds too few of a kind the whole cube (up to 16 features) or another pool is searched: a
uniform draw without replacement in each case.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradatim.tasks.concepts import MAX_TABLE_FEATURES, Concept, unpack

WHOLE_CUBE = 10
POOL = 256


def draw_examples(
    concepts: Sequence[Concept], positives: int, negatives: int, rng: np.random.Generator, tries: int = 10
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Inputs [T, positives, F] and [T, negatives, F] as bools, and what each concept lacks ("" = nothing).

    A concept that lacks something ("2 positive inputs, 10 are needed") has meaningless rows. Up to 16
    features lacking is exact; beyond, it means that `tries` pools of 256 inputs did not hold enough.
    """
    features = concepts[0].n_features
    if features <= WHOLE_CUBE:
        return _from_cube(concepts, positives, negatives, rng)
    found = [np.zeros((len(concepts), k, features), dtype=bool) for k in (positives, negatives)]
    lacks = _lacks(concepts, positives, negatives) if features <= MAX_TABLE_FEATURES else [""] * len(concepts)
    left = [t for t, lack in enumerate(lacks) if not lack]
    size = max(POOL, 4 * (positives + negatives))
    for _ in range(1 if features <= MAX_TABLE_FEATURES else tries):
        if not left:
            break
        inputs = rng.integers(0, 256, (len(left), size, -(-features // 8)), dtype=np.uint8)
        inputs = np.unpackbits(inputs, axis=-1, count=features, bitorder="little").astype(bool)
        labels = np.stack([concepts[t].run(inputs[k].T, True) for k, t in enumerate(left)])
        fresh = ~_repeated(inputs)
        enough = np.ones(len(left), dtype=bool)
        for rows, count, wanted in ((found[0], positives, labels), (found[1], negatives, ~labels)):
            index, full = _choose(wanted & fresh, count, rng)
            enough &= full
            rows[left] = np.take_along_axis(inputs, index[:, :, None], axis=1)
        left = [t for t, done in zip(left, enough, strict=True) if not done]
    for t in left:
        if features <= MAX_TABLE_FEATURES:
            table = unpack(concepts[t].bits, features)
            for rows, count, value in ((found[0], positives, True), (found[1], negatives, False)):
                index = rng.choice(np.flatnonzero(table == value), count, replace=False)
                rows[t] = (index[:, None] >> np.arange(features)) & 1
        else:
            share = concepts[t].density
            lacks[t] = (
                f"too few {'positive' if share < 0.5 else 'negative'} inputs among {tries * size} drawn, "
                f"{positives if share < 0.5 else negatives} are needed"
            )
    return found[0], found[1], lacks


def _from_cube(
    concepts: Sequence[Concept], positives: int, negatives: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    features = concepts[0].n_features
    lacks = _lacks(concepts, positives, negatives)
    if (1 << features) < max(positives, negatives):
        empty = [np.zeros((len(concepts), k, features), dtype=bool) for k in (positives, negatives)]
        return empty[0], empty[1], lacks
    tables = np.stack([unpack(c.bits, features) for c in concepts])
    found = []
    for count, wanted in ((positives, tables), (negatives, ~tables)):
        index, _ = _choose(wanted, count, rng)
        found.append(((index[:, :, None] >> np.arange(features)) & 1).astype(bool))
    return found[0], found[1], lacks


def _lacks(concepts: Sequence[Concept], positives: int, negatives: int) -> list[str]:
    """What each concept lacks over its whole cube."""
    found = []
    for concept in concepts:
        true = concept.bits.bit_count()
        counts = ((true, positives, "positive"), ((1 << concept.n_features) - true, negatives, "negative"))
        short = [f"{has} {kind} inputs, {needs} are needed" for has, needs, kind in counts if has < needs]
        found.append("; ".join(short))
    return found


def _choose(wanted: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` places per row [T, count] among those wanted [T, n], in random order; which rows had enough."""
    keys = rng.random(wanted.shape, dtype=np.float32)
    keys[~wanted] = 2.0
    if count < wanted.shape[1]:
        index = np.argpartition(keys, count, axis=1)[:, :count]
    else:
        index = np.broadcast_to(np.arange(wanted.shape[1]), wanted.shape)
    # argpartition leaves an order that depends on the places; sorting by the keys makes it random.
    order = np.argsort(np.take_along_axis(keys, index, axis=1), axis=1)
    return np.take_along_axis(index, order, axis=1), wanted.sum(1) >= count


def _repeated(inputs: np.ndarray) -> np.ndarray:
    """Which rows [T, n] of inputs [T, n, F] occurred before in their task.

    Compared by their first 64 features: more would agree by chance less often than once in 10^14 pools.
    """
    packed = np.packbits(inputs[:, :, :64], axis=-1)
    words = np.zeros((*packed.shape[:2], 8), dtype=np.uint8)
    words[:, :, : packed.shape[2]] = packed
    keys = words.view(np.uint64)[:, :, 0]
    order = np.argsort(keys, axis=1, kind="stable")
    ranked = np.take_along_axis(keys, order, axis=1)
    again = np.zeros(keys.shape, dtype=bool)
    np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
    return again
