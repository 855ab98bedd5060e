"""Several vectors per word, chosen by context: the disambiguated skip-gram.

K. Grzegorczyk and M. Kurdziel, "Disambiguated skip-gram model", EMNLP 2018; K. Grzegorczyk, "Vector
representations of text data in deep learning", 2019, arXiv 1901.01695.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from gradatim.models.sense_training import (
    ASSIGNMENTS,
    SensePlan,
    SenseWeights,
    sense_priors,
    sense_probabilities,
    train_senses,
)
from gradatim.models.skip_gram import check_lr, document_means
from gradatim.models.text_vector_files import checked_array, load_text_vectors, save_text_vectors
from gradatim.models.vocabulary import (
    EncodedCorpus,
    Tokenizer,
    Vocabulary,
    build_vocabulary,
    tokenized,
)
from gradatim.models.word_neighbours import keyed_vectors, nearest, row_of


class SenseSkipGram(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Word vectors with `n_senses` senses per word and a classifier that tells them apart by context.

    With ctx the mean output vector of the window, sense logits l = A ctx + a and sense weights pi =
    softmax((l + Gumbel noise) / T), the vector sum_s pi_s E[word, s] predicts every word of the window. Stage
    1 (`warm_epochs`) trains one classifier for all words with plain softmax at T = 1; stage 2 gives each word
    a copy and anneals T within its first epoch.

    Parameters
    ----------
    n_senses : at least 2.
    n_components : components of a vector.
    window : words on each side. `full_windows` takes all of them (the paper); else 1 to `window`, drawn.
    assignment : "gumbel", "softmax" (no noise), or "hard": each context goes to the nearest cluster of the
        word's contexts (MSSG, arXiv 1504.06654), the baseline; stage 1 then trains without any choice.
    per_word : a classifier for each word in stage 2; False goes on with the shared one.
    temperature : (first, last) of stage 2.
    entropy, final_entropy : lambda of stages 1 and 2. The loss adds lambda times the mean entropy of
        softmax(l): below 0 it keeps senses in use, above 0 it empties them.
    warm_epochs, epochs : of stages 1 and 2.
    lr, min_lr : step of vectors, falling linearly within each stage.
    classifier_lr : step of the classifiers in stage 2.
    shared_lr : step of the shared classifier in stage 1; None is `lr`, and 0 leaves every choice to stage 2.
    prune : senses with a smaller prior are switched off after training; 0 keeps all.
    loss : "negative_sampling", or "sampled_softmax" as in the paper.
    negative, ns_exponent : noise words; `ns_exponent=None` draws them log-uniformly by frequency rank.
    sample, min_count, max_vocab, shared_negatives, tokenizer, n_jobs, random_state : as in `SkipGram`.
    device : None for the compiled kernels; "cpu", "cuda" ... trains in torch, in batches of `batch_size`
        words.

    Attributes
    ----------
    vectors_ : float32 [V, S, n_components].
    output_vectors_ : float32 [V, n_components].
    priors_ : [V, S], mean of softmax(l) over the word's occurrences, without noise; 0 where pruned.
    vocabulary_ : the `Vocabulary`.

    `transform` gives the mean, over a document's words, of the vector expected under the senses'
    probabilities. Raises ValueError for an empty vocabulary, KeyError for an unknown word.
    """

    vocabulary_: Vocabulary
    weights_: SenseWeights
    priors_: np.ndarray

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_senses": [Interval(Integral, 2, None, closed="left")],
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "window": [Interval(Integral, 1, None, closed="left")],
        "full_windows": ["boolean"],
        "assignment": [StrOptions(set(ASSIGNMENTS))],
        "per_word": ["boolean"],
        "temperature": [tuple, list],
        "entropy": [Interval(Real, None, None, closed="neither")],
        "final_entropy": [Interval(Real, None, None, closed="neither")],
        "warm_epochs": [Interval(Integral, 0, None, closed="left")],
        "epochs": [Interval(Integral, 0, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "min_lr": [Interval(Real, 0, None, closed="left")],
        "classifier_lr": [Interval(Real, 0, None, closed="left")],
        "shared_lr": [None, Interval(Real, 0, None, closed="left")],
        "prune": [Interval(Real, 0, 1, closed="left")],
        "loss": [StrOptions({"negative_sampling", "sampled_softmax"})],
        "negative": [Interval(Integral, 1, None, closed="left")],
        "ns_exponent": [None, Interval(Real, None, None, closed="neither")],
        "sample": [Interval(Real, 0, None, closed="left")],
        "min_count": [Interval(Integral, 1, None, closed="left")],
        "max_vocab": [None, Interval(Integral, 1, None, closed="left")],
        "shared_negatives": ["boolean"],
        "tokenizer": [None, callable],
        "n_jobs": [None, Integral],
        "device": [None, str],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_senses: int = 5,
        n_components: int = 100,
        window: int = 5,
        full_windows: bool = True,
        assignment: str = "gumbel",
        per_word: bool = True,
        temperature: tuple[float, float] = (1.0, 0.5),
        entropy: float = -1.0,
        final_entropy: float = 0.0,
        warm_epochs: int = 1,
        epochs: int = 3,
        lr: float = 0.025,
        min_lr: float = 1e-4,
        classifier_lr: float = 0.025,
        shared_lr: float | None = None,
        prune: float = 0.05,
        loss: str = "negative_sampling",
        negative: int = 5,
        ns_exponent: float | None = 0.75,
        sample: float = 1e-3,
        min_count: int = 5,
        max_vocab: int | None = None,
        shared_negatives: bool = True,
        tokenizer: Tokenizer | None = None,
        n_jobs: int | None = 1,
        device: str | None = None,
        batch_size: int = 4096,
        random_state: Any = None,
    ) -> None:
        self.n_senses = n_senses
        self.n_components = n_components
        self.window = window
        self.full_windows = full_windows
        self.assignment = assignment
        self.per_word = per_word
        self.temperature = temperature
        self.entropy = entropy
        self.final_entropy = final_entropy
        self.warm_epochs = warm_epochs
        self.epochs = epochs
        self.lr = lr
        self.min_lr = min_lr
        self.classifier_lr = classifier_lr
        self.shared_lr = shared_lr
        self.prune = prune
        self.loss = loss
        self.negative = negative
        self.ns_exponent = ns_exponent
        self.sample = sample
        self.min_count = min_count
        self.max_vocab = max_vocab
        self.shared_negatives = shared_negatives
        self.tokenizer = tokenizer
        self.n_jobs = n_jobs
        self.device = device
        self.batch_size = batch_size
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Iterable[Any], y: Any = None) -> SenseSkipGram:
        """Builds the vocabulary and trains both stages on documents: strings or lists of tokens."""
        documents = tokenized(X, self.tokenizer)
        vocabulary = build_vocabulary(documents, self.min_count, self.max_vocab)
        return self.fit_encoded(vocabulary.encode(documents), vocabulary)

    def fit_encoded(self, corpus: EncodedCorpus, vocabulary: Vocabulary) -> SenseSkipGram:
        """Trains on word numbers, for a caller who has encoded the documents already."""
        plan = self._plan()
        rng = check_random_state(self.random_state)
        weights = plan.fresh_weights(len(vocabulary), rng)
        if self.device is None:
            weights = train_senses(corpus, vocabulary, plan, weights, rng)
        else:
            from gradatim.models.sense_torch import train_in_torch

            weights = train_in_torch(corpus, vocabulary, plan, weights, rng, self.device, self.batch_size)
        priors = sense_priors(corpus, plan, weights)
        weights.alive[:] = priors >= self.prune
        weights.alive[np.arange(len(priors)), priors.argmax(axis=1)] = 1
        priors = np.where(weights.alive, priors, 0.0)
        self.vocabulary_, self.weights_ = vocabulary, weights
        self.priors_ = priors / priors.sum(axis=1, keepdims=True)
        return self

    @property
    def vectors_(self) -> Float[np.ndarray, "words senses dim"]:
        return self.weights_.senses[:, :, : self.n_components]

    @property
    def output_vectors_(self) -> Float[np.ndarray, "words dim"]:
        return self.weights_.outputs[:, : self.n_components]

    def disambiguate(
        self, word: str, context: Sequence[str], temperature: float = 1.0, with_word: bool = False
    ) -> Float[np.ndarray, " senses"]:
        """Probabilities of a word's senses in a context: softmax((A ctx + a) / T), without noise.

        ctx is the mean output vector of the context's known words; `with_word` adds the word itself, as the
        authors' evaluation does and their training does not. Without a known word the priors are the answer.
        `temperature=0` is one-hot, as the cluster assignment of "hard" always is. KeyError for an unknown
        word.
        """
        check_is_fitted(self)
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        row, index = row_of(word, self.vocabulary_.index), self.vocabulary_.index
        known = [index[w] for w in context if w in index] + ([row] if with_word else [])
        if not known:
            return self.priors_[row].copy()
        ctx = self.weights_.outputs[known].mean(axis=0)
        return sense_probabilities(self._plan(), self.weights_, row, ctx, temperature)

    def most_similar(self, word: str, sense: int, k: int = 10) -> list[tuple[str, float]]:
        """The `k` senses of other words of highest cosine with a sense, named `word#sense`."""
        check_is_fitted(self)
        row = row_of(word, self.vocabulary_.index)
        if not 0 <= sense < self.n_senses or not self.weights_.alive[row, sense]:
            alive = np.flatnonzero(self.weights_.alive[row]).tolist()
            raise ValueError(f"sense {sense} of {word!r} is not in use; those in use are {alive}")
        names, vectors, rows = self._in_use()
        return nearest(vectors, names, self.vectors_[row, sense], k, np.flatnonzero(rows == row).tolist())

    def transform(self, X: Iterable[Any]) -> Float[np.ndarray, "docs dim"]:
        """Mean over a document's words of sum_s p_s E[word, s], p from the words around."""
        check_is_fitted(self)
        corpus, plan = self.vocabulary_.encode(tokenized(X, self.tokenizer)), self._plan()
        found = np.zeros((len(corpus.ids), self.n_components), np.float32)
        for begin, end in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True):
            ids = corpus.ids[begin:end]
            for i, row in enumerate(ids.tolist()):
                around = np.r_[ids[max(0, i - self.window) : i], ids[i + 1 : i + 1 + self.window]]
                p = self.priors_[row]
                if len(around):
                    p = sense_probabilities(
                        plan, self.weights_, row, self.weights_.outputs[around].mean(0), 1.0
                    )
                found[begin + i] = p @ self.vectors_[row]
        return document_means(corpus, found)

    def to_keyed_vectors(self) -> Any:
        """gensim's KeyedVectors of all senses in use, named `word#sense`; needs the extra `gensim`."""
        check_is_fitted(self)
        names, vectors, _ = self._in_use()
        return keyed_vectors(names, vectors)

    def save(self, folder: str | Path) -> None:
        """Writes settings, vocabulary and arrays as JSON and npz; a tokenizer of your own is not written."""
        check_is_fitted(self)
        settings = {**self.get_params(), "temperature": list(self.temperature)}
        arrays = {**self.weights_.arrays(), "priors": self.priors_}
        save_text_vectors(folder, "SenseSkipGram", settings, self.vocabulary_, arrays)

    @classmethod
    def load(cls, folder: str | Path, tokenizer: Tokenizer | None = None) -> SenseSkipGram:
        """What `save` wrote; ValueError when the folder does not hold a whole, consistent model."""
        saved = load_text_vectors(folder, "SenseSkipGram", set(cls().get_params()), tokenizer)
        model = cls(**{**saved.settings, "temperature": tuple(saved.settings["temperature"])})
        model._validate_params()
        V, S = len(saved.vocabulary), model.n_senses
        fresh = model._plan().fresh_weights(V, check_random_state(0)).with_classifiers(V, model._has_own)
        model.vocabulary_ = saved.vocabulary
        model.weights_ = SenseWeights(
            **{n: checked_array(saved, n, a.shape, a.dtype.type) for n, a in fresh.arrays().items()}
        )
        model.priors_ = checked_array(saved, "priors", (V, S), np.float64)
        return model

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags

    @property
    def _n_features_out(self) -> int:
        return int(self.n_components)

    @property
    def _has_own(self) -> bool:
        return self._plan().own_classifiers

    def _in_use(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        rows, senses = np.nonzero(self.weights_.alive)
        names = [f"{self.vocabulary_.words[r]}#{s}" for r, s in zip(rows, senses, strict=True)]
        return names, self.vectors_[rows, senses], rows

    def _plan(self) -> SensePlan:
        check_lr(self.lr, self.min_lr)
        if len(self.temperature) != 2 or min(self.temperature) <= 0:
            raise ValueError(f"temperature={self.temperature!r}: give (first, last), both above 0")
        if self.warm_epochs + self.epochs < 1:
            raise ValueError("warm_epochs=0 and epochs=0: nothing would be trained")
        return SensePlan(
            senses=self.n_senses,
            size=self.n_components,
            window=self.window,
            full_windows=self.full_windows,
            assignment=ASSIGNMENTS[self.assignment],
            per_word=self.per_word,
            temperature=(float(self.temperature[0]), float(self.temperature[1])),
            entropies=(float(self.entropy), float(self.final_entropy)),
            warm_epochs=self.warm_epochs,
            epochs=self.epochs,
            lr=float(self.lr),
            classifier_lr=float(self.classifier_lr),
            shared_lr=float(self.lr if self.shared_lr is None else self.shared_lr),
            end_share=float(self.min_lr / self.lr),
            sampled_softmax=self.loss == "sampled_softmax",
            negative=self.negative,
            shared=self.shared_negatives,
            sample=float(self.sample),
            ns_exponent=self.ns_exponent,
            n_jobs=self.n_jobs,
        )
