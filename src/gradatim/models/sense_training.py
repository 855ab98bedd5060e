"""Runs the compiled sense passes: the two stages, priors, and the probabilities of senses in a context."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from gradatim.models.paragraph_training import on_threads, padded, threads
from gradatim.models.skip_gram import check_finite
from gradatim.models.vocabulary import EncodedCorpus, Vocabulary

UNIFORM, SOFTMAX, GUMBEL, HARD = 0, 1, 2, 3
ASSIGNMENTS = {"softmax": SOFTMAX, "gumbel": GUMBEL, "hard": HARD}


@dataclass
class SenseWeights:
    """All parameters: sense vectors, output rows with bias, classifiers (one, or one per word), senses in
    use.

    Rows are padded with zeros to a multiple of 16. For "hard", `classifiers` are sums of contexts and
    `classifier_bias` their number.
    """

    senses: Float[np.ndarray, "words senses columns"]
    outputs: Float[np.ndarray, "words columns"]
    output_bias: Float[np.ndarray, " words"]
    classifiers: Float[np.ndarray, "owners senses columns"]
    classifier_bias: Float[np.ndarray, "owners senses"]
    alive: Integer[np.ndarray, "words senses"]

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def with_classifiers(self, words: int, own: bool) -> SenseWeights:
        """A copy of the shared classifier for each word, when words have their own."""
        if not own or len(self.classifiers) == words:
            return self
        return replace(
            self,
            classifiers=np.repeat(self.classifiers, words, axis=0),
            classifier_bias=np.repeat(self.classifier_bias, words, axis=0),
        )


@dataclass(frozen=True)
class SensePlan:
    """The settings of `SenseSkipGram` as its kernels take them; pairs are of stages 1 and 2."""

    senses: int
    size: int
    window: int
    full_windows: bool
    assignment: int
    per_word: bool
    temperature: tuple[float, float]
    entropies: tuple[float, float]
    warm_epochs: int
    epochs: int
    lr: float
    classifier_lr: float
    shared_lr: float
    end_share: float
    sampled_softmax: bool
    negative: int
    shared: bool
    sample: float
    ns_exponent: float | None
    n_jobs: int | None

    @property
    def own_classifiers(self) -> bool:
        """Whether stage 2 has a classifier (or clusters) for each word."""
        return self.assignment == HARD or (self.per_word and self.epochs > 0)

    def fresh_weights(self, words: int, rng: np.random.RandomState) -> SenseWeights:
        """Senses uniform within +-0.5 / (D S), everything else zero, as in the authors' code."""
        columns, half = padded(self.size), 0.5 / (self.size * self.senses)
        senses = np.zeros((words, self.senses, columns), np.float32)
        senses[:, :, : self.size] = rng.uniform(-half, half, (words, self.senses, self.size))
        return SenseWeights(
            senses=senses,
            outputs=np.zeros((words, columns), np.float32),
            output_bias=np.zeros(words, np.float32),
            classifiers=np.zeros((1, self.senses, columns), np.float32),
            classifier_bias=np.zeros((1, self.senses), np.float32),
            alive=np.ones((words, self.senses), np.uint8),
        )

    def stages(self) -> list[tuple[int, int, float, tuple[float, float], float]]:
        """(epochs, assignment, lambda, temperatures, classifier step) of each stage that has epochs.

        The shared classifier of stage 1 hears every word: a large step lets one sense win everything.
        """
        first = UNIFORM if self.assignment == HARD else SOFTMAX
        both = [
            (self.warm_epochs, first, self.entropies[0], (1.0, 1.0), self.shared_lr),
            (self.epochs, self.assignment, self.entropies[1], self.temperature, self.classifier_lr),
        ]
        return [stage for stage in both if stage[0]]


def train_senses(
    corpus: EncodedCorpus,
    vocabulary: Vocabulary,
    plan: SensePlan,
    weights: SenseWeights,
    rng: np.random.RandomState,
) -> SenseWeights:
    """Both stages, in place except for the classifiers, which stage 2 copies to every word."""
    from gradatim.models.compiled import sigmoid_table
    from gradatim.models.sense_kernels import sense_pass

    keep, noise = vocabulary.keep_thresholds(plan.sample), vocabulary.noise(plan.ns_exponent)
    table, expected = sigmoid_table(), log_expected(vocabulary, plan)
    shards = corpus.shards(threads(plan.n_jobs))
    for stage, (epochs, assignment, entropy, heat, step) in enumerate(plan.stages()):
        if assignment == plan.assignment and (stage or not plan.warm_epochs):
            weights = weights.with_classifiers(len(vocabulary), plan.own_classifiers)
        seeds = rng.randint(0, 2**62, size=len(shards), dtype=np.int64)
        w = weights
        for epoch in range(epochs):

            def run(
                first: int, last: int, seed: int, epoch: int = epoch, epochs: int = epochs,
                how: int = assignment, lam: float = entropy, heat: tuple[float, float] = heat,
                w: SenseWeights = w, step: float = step,
            ) -> Any:  # fmt: skip
                return sense_pass(
                    corpus.ids, corpus.offsets, first, last, w.senses, w.outputs, w.output_bias,
                    w.classifiers, w.classifier_bias, w.alive, keep, noise.threshold, noise.other, expected,
                    table, how, plan.sampled_softmax, plan.window, plan.full_windows, plan.negative,
                    plan.shared, plan.lr, step, plan.end_share, lam, heat[0], heat[1], 1.0,
                    epoch, epochs, seed + epoch,
                )  # fmt: skip

            on_threads(run, [(*shard, int(seed)) for shard, seed in zip(shards, seeds, strict=True)])
            check_finite(epoch, plan.lr, w.senses, w.outputs, w.classifiers)
    return weights


def log_expected(vocabulary: Vocabulary, plan: SensePlan) -> Float[np.ndarray, " words"]:
    """log of how often a word is expected among the noise words of a pair: what sampled softmax takes off."""
    share = vocabulary.noise_weights(plan.ns_exponent)
    return np.asarray(np.log(plan.negative * share / share.sum()), dtype=np.float32)


def sense_priors(
    corpus: EncodedCorpus, plan: SensePlan, weights: SenseWeights
) -> Float[np.ndarray, "words senses"]:
    """Mean sense weights of every word over its occurrences, without noise; equal shares without any."""
    from gradatim.models.sense_kernels import sense_usage

    usage = np.zeros(weights.alive.shape, np.float64)
    w = weights
    sense_usage(
        corpus.ids, corpus.offsets, w.outputs, w.classifiers, w.classifier_bias, w.alive, plan.assignment,
        plan.window, usage,
    )  # fmt: skip
    total = usage.sum(axis=1, keepdims=True)
    return np.where(total > 0, usage / np.maximum(total, 1e-300), 1.0 / plan.senses)


def sense_probabilities(
    plan: SensePlan,
    weights: SenseWeights,
    row: int,
    ctx: Float[np.ndarray, " columns"],
    temperature: float,
) -> Float[np.ndarray, " senses"]:
    """softmax((A ctx + a) / T) over the senses in use; one-hot at T = 0 and for cluster assignment."""
    owner = row if len(weights.classifiers) > 1 else 0
    A, a = weights.classifiers[owner].astype(np.float64), weights.classifier_bias[owner].astype(np.float64)
    if plan.assignment == HARD:
        logits = A @ ctx / np.maximum(np.linalg.norm(A, axis=1), 1e-10)
        temperature = 0.0
    else:
        logits = A @ ctx + a
    logits = np.where(weights.alive[row] > 0, logits, -np.inf)
    if temperature == 0:
        return np.asarray(np.arange(plan.senses) == logits.argmax(), dtype=np.float64)
    weighed = np.exp((logits - logits.max()) / temperature)
    return np.asarray(weighed / weighed.sum())
