"""Skip-gram with negative sampling as a scikit-learn transformer.

T. Mikolov, I. Sutskever, K. Chen, G. Corrado and J. Dean, "Distributed Representations of Words and Phrases
and their Compositionality", 2013, arXiv 1310.4546.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from gradatim.models.paragraph_training import on_threads, padded, threads
from gradatim.models.text_vector_files import checked_array, load_text_vectors, save_text_vectors
from gradatim.models.vocabulary import (
    EncodedCorpus,
    Tokenizer,
    Vocabulary,
    build_vocabulary,
    tokenized,
)
from gradatim.models.word_neighbours import keyed_vectors, nearest, row_of


class SkipGram(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Word vectors that tell a word's neighbours from noise words.

    For every word x, and every word c of a window of 1 to `window` words on each side, it maximises
    log sigma(w_c . u_x) + the sum over `negative` noise words n of log sigma(-w_c . u_n).

    Parameters
    ----------
    n_components : components of a vector.
    window, negative, ns_exponent, sample, min_count, max_vocab : as in `ParagraphVector`.
    epochs, lr, min_lr : passes, and the step, which falls linearly from `lr` to `min_lr`.
    shared_negatives : the pairs of one centre share its noise words, over twice as fast; False is word2vec's
        own step.
    tokenizer, n_jobs, device, batch_size, random_state : as in `ParagraphVector`.

    Attributes
    ----------
    vectors_, output_vectors_ : float32 [V, n_components], w and u.
    vocabulary_ : the `Vocabulary`.

    `transform` gives the mean vector of a document's words. Raises ValueError for an empty vocabulary,
    TypeError for documents that are no text, KeyError for an unknown word; FloatingPointError when training
    diverges.
    """

    vocabulary_: Vocabulary
    vectors_: np.ndarray
    output_vectors_: np.ndarray

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "window": [Interval(Integral, 1, None, closed="left")],
        "negative": [Interval(Integral, 1, None, closed="left")],
        "ns_exponent": [Interval(Real, None, None, closed="neither")],
        "sample": [Interval(Real, 0, None, closed="left")],
        "min_count": [Interval(Integral, 1, None, closed="left")],
        "max_vocab": [None, Interval(Integral, 1, None, closed="left")],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "min_lr": [Interval(Real, 0, None, closed="left")],
        "shared_negatives": ["boolean"],
        "tokenizer": [None, callable],
        "n_jobs": [None, Integral],
        "device": [None, str],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 100,
        window: int = 5,
        negative: int = 5,
        ns_exponent: float = 0.75,
        sample: float = 1e-3,
        min_count: int = 5,
        max_vocab: int | None = None,
        epochs: int = 5,
        lr: float = 0.025,
        min_lr: float = 1e-4,
        shared_negatives: bool = True,
        tokenizer: Tokenizer | None = None,
        n_jobs: int | None = 1,
        device: str | None = None,
        batch_size: int = 16384,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.window = window
        self.negative = negative
        self.ns_exponent = ns_exponent
        self.sample = sample
        self.min_count = min_count
        self.max_vocab = max_vocab
        self.epochs = epochs
        self.lr = lr
        self.min_lr = min_lr
        self.shared_negatives = shared_negatives
        self.tokenizer = tokenizer
        self.n_jobs = n_jobs
        self.device = device
        self.batch_size = batch_size
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Iterable[Any], y: Any = None) -> SkipGram:
        """Builds the vocabulary and trains on documents: strings or lists of tokens."""
        documents = tokenized(X, self.tokenizer)
        vocabulary = build_vocabulary(documents, self.min_count, self.max_vocab)
        return self.fit_encoded(vocabulary.encode(documents), vocabulary)

    def fit_encoded(self, corpus: EncodedCorpus, vocabulary: Vocabulary) -> SkipGram:
        """Trains on word numbers, for a caller who has encoded the documents already."""
        check_lr(self.lr, self.min_lr)
        rng = check_random_state(self.random_state)
        shape = (len(vocabulary), padded(self.n_components))
        W, U = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        # gensim's +-1/D, twice word2vec's: with few passes over a small corpus the loss is 0.5 % lower.
        most = 1.0 / self.n_components
        W[:, : self.n_components] = rng.uniform(-most, most, (len(vocabulary), self.n_components))
        if self.device is None:
            self._train(corpus, vocabulary, W, U, rng)
        else:
            from gradatim.models.skip_gram_torch import train_in_torch

            train_in_torch(
                corpus, vocabulary, W, U, self.window, self.negative, self.ns_exponent, self.sample,
                self.epochs, self.lr, self.min_lr, rng, self.device, self.batch_size,
            )  # fmt: skip
        self.vocabulary_ = vocabulary
        self.vectors_ = W[:, : self.n_components].copy()
        self.output_vectors_ = U[:, : self.n_components].copy()
        return self

    def transform(self, X: Iterable[Any]) -> Float[np.ndarray, "docs dim"]:
        """The mean vector of each document's known words; zeros, and a warning, where there is none."""
        check_is_fitted(self)
        corpus = self.vocabulary_.encode(tokenized(X, self.tokenizer))
        return document_means(corpus, self.vectors_[corpus.ids])

    def vector(self, word: str) -> Float[np.ndarray, " dim"]:
        """The vector of a word; KeyError when it is unknown."""
        check_is_fitted(self)
        return self.vectors_[row_of(word, self.vocabulary_.index)]

    def most_similar(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """The `k` words of highest cosine with a word, itself left out."""
        check_is_fitted(self)
        row = row_of(word, self.vocabulary_.index)
        return nearest(self.vectors_, self.vocabulary_.words, self.vectors_[row], k, [row])

    def to_keyed_vectors(self) -> Any:
        """gensim's KeyedVectors; needs the extra `gensim`."""
        check_is_fitted(self)
        return keyed_vectors(self.vocabulary_.words, self.vectors_)

    def save(self, folder: str | Path) -> None:
        """Writes settings, vocabulary and arrays as JSON and npz; a tokenizer of your own is not written."""
        check_is_fitted(self)
        arrays = {"vectors": self.vectors_, "output_vectors": self.output_vectors_}
        save_text_vectors(folder, "SkipGram", self.get_params(), self.vocabulary_, arrays)

    @classmethod
    def load(cls, folder: str | Path, tokenizer: Tokenizer | None = None) -> SkipGram:
        """What `save` wrote; ValueError when the folder does not hold a whole, consistent model."""
        saved = load_text_vectors(folder, "SkipGram", set(cls().get_params()), tokenizer)
        model = cls(**saved.settings)
        model._validate_params()
        shape = (len(saved.vocabulary), model.n_components)
        model.vocabulary_ = saved.vocabulary
        model.vectors_ = checked_array(saved, "vectors", shape)
        model.output_vectors_ = checked_array(saved, "output_vectors", shape)
        return model

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags

    @property
    def _n_features_out(self) -> int:
        return int(self.vectors_.shape[1])

    def _train(
        self, corpus: EncodedCorpus, vocabulary: Vocabulary, W: np.ndarray, U: np.ndarray, rng: Any
    ) -> None:
        from gradatim.models.compiled import sigmoid_table
        from gradatim.models.skip_gram_kernels import skip_gram_pass

        keep, noise = vocabulary.keep_thresholds(float(self.sample)), vocabulary.noise(self.ns_exponent)
        table, shards = sigmoid_table(), corpus.shards(threads(self.n_jobs))
        seeds = rng.randint(0, 2**62, size=len(shards), dtype=np.int64)
        for epoch in range(self.epochs):

            def run(first: int, last: int, seed: int, epoch: int = epoch) -> Any:
                return skip_gram_pass(
                    corpus.ids, corpus.offsets, first, last, W, U, keep, noise.threshold, noise.other, table,
                    self.window, self.negative, self.shared_negatives, float(self.lr), self.min_lr / self.lr,
                    epoch, self.epochs, seed + epoch,
                )  # fmt: skip

            on_threads(run, [(*shard, int(seed)) for shard, seed in zip(shards, seeds, strict=True)])
            check_finite(epoch, self.lr, W, U)


def check_lr(lr: float, min_lr: float) -> None:
    """The step falls from `lr` to `min_lr`."""
    if min_lr > lr:
        raise ValueError(f"min_lr={min_lr} is above lr={lr}: the step falls from lr to min_lr")


def check_finite(epoch: int, lr: float, *arrays: np.ndarray) -> None:
    """FloatingPointError when a parameter is no longer finite."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise FloatingPointError(f"training diverged in epoch {epoch + 1}: lower lr={lr:g}")


def document_means(
    corpus: EncodedCorpus, vectors: Float[np.ndarray, "tokens dim"]
) -> Float[np.ndarray, "docs dim"]:
    """Mean vector of each document's tokens; zeros, and one warning, for documents without any."""
    sizes = np.diff(corpus.offsets)
    means = np.zeros((len(corpus), vectors.shape[1]), np.float32)
    some = sizes > 0
    if some.any():
        sums = np.add.reduceat(vectors, corpus.offsets[:-1][some], axis=0)
        means[some] = sums / sizes[some, None]
    if not some.all():
        warnings.warn(
            f"transform: {int((~some).sum())} of {len(corpus)} documents (first: number "
            f"{int(np.argmin(some))}) have no word of the vocabulary; their vectors are zeros",
            UserWarning,
            stacklevel=3,
        )
    return means
