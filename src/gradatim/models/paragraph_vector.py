"""Paragraph vectors: real, binary and Real-Binary codes of documents, learned from raw text.

Q. Le and T. Mikolov, "Distributed Representations of Sentences and Documents", 2014, arXiv 1405.4053;
K. Grzegorczyk and M. Kurdziel, "Binary Paragraph Vectors", 2017, arXiv 1611.01116;
K. Grzegorczyk, "Vector representations of text data in deep learning", 2019, arXiv 1901.01695.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from gradatim.models.paragraph_training import (
    BLOCK,
    COMBINES,
    ROUNDINGS,
    ParagraphPlan,
    ParagraphWeights,
    infer_paragraphs,
    padded,
    threads,
    train_paragraphs,
)
from gradatim.models.text_vector_files import checked_array, load_text_vectors, save_text_vectors
from gradatim.models.vocabulary import (
    EncodedCorpus,
    Tokenizer,
    Vocabulary,
    build_vocabulary,
    tokenized,
)

BINARY_STEP, REAL_BINARY_STEPS = 1.0, 4.0
"""The document's step for codes, whatever `lr`: sigma' is at most 1/4. For Real-Binary, in units of `lr`."""


class ParagraphVector(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Vectors of documents that predict the documents' words; `binary=True` gives codes of bits.

    With document vector d, hidden vector h and output rows u, negative sampling maximises, for every word,
    log sigma(h . u_word + b_word) + the sum over `negative` noise words of log sigma(-h . u - b). Then

    - real (PV-DBOW): h = d;
    - binary: h = round(sigma(d)), the rounding taken as identity in the backward pass, so that d moves along
      sigma'(d) sum(e u), e = target - sigma(logit); the code is [d > 0];
    - Real-Binary (`real_dim`): h = round(sigma(W d + c)), d real, W and c shared; the code is [W d + c > 0];
    - `mode="dm"`: h joins the words around to predict the word in the middle (see `combine`).

    Parameters
    ----------
    n_components : components of h; bits of the code when `binary`. Need not be a multiple of 8.
    mode : "dbow" or "dm".
    binary : learn codes.
    real_dim : components of d for Real-Binary; needs `binary`.
    window : words on each side in "dm"; drawn from 1 to `window` at each position, except for "ordered".
    combine : "concat" ([h; mean of words]), "mean" (one mean; for codes Q h + mean of words, Q learned) or
        "ordered" ([h; word at -window ... word at +window]). Of "dm".
    word_dim : components of the words around in "dm"; None for `n_components`.
    negative, ns_exponent : noise words per word, drawn with probability proportional to count^ns_exponent.
    sample : sub-sampling threshold of frequent words; 0 keeps all.
    min_count, max_vocab, ngram : the vocabulary; `ngram=2` predicts bigrams of the document too ("dbow").
    epochs, lr, min_lr : passes, and the step of the shared rows, which falls linearly to `min_lr`.
    doc_lr : step of the document vectors (falls alike); "auto" is `lr`, 1.0 for codes, 4 `lr` for
        Real-Binary.
    rounding : "straight_through", "none" (sigma itself) or "noise" (sigma of d plus Gaussian noise).
    noise : its standard deviation.
    dropout : share of h switched off at random in training.
    shared_negatives : "dbow" only: blocks of 8 tokens share 8 weighted noise words, about twice as fast;
        False is word2vec's own step.
    infer_epochs : passes over an unseen document; None for `epochs`.
    tokenizer : callable for documents given as strings; None takes runs of word characters in lower case.
    n_jobs : threads. 1 is bitwise reproducible; more race on shared rows and are not. Inference always is.
    device : None for the compiled kernels; "cpu", "cuda" ... trains in torch, in batches of `batch_size`
        words, by Adam with step `lr` for everything. Inference is compiled either way.
    random_state : seed of training. Inference is seeded by the document itself.

    Attributes
    ----------
    embedding_ : float32 [N, d], vectors of the fitted documents; zeros for one without known words.
    codes_ : uint8 [N, ceil(bits / 8)], the packed codes (binary).
    bit_means_ : [bits], how often each bit is set over the fitted documents: 0 or 1 is a dead bit (binary).
    vocabulary_ : the `Vocabulary`.
    weights_ : what documents share.

    `transform` infers; for the vectors that training found take `embedding_`. Raises ValueError for an empty
    vocabulary and for settings that do not go together, TypeError for documents that are no text; warns of
    documents without any known word.
    """

    vocabulary_: Vocabulary
    weights_: ParagraphWeights
    embedding_: np.ndarray

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "mode": [StrOptions({"dbow", "dm"})],
        "binary": ["boolean"],
        "real_dim": [None, Interval(Integral, 1, None, closed="left")],
        "window": [Interval(Integral, 1, None, closed="left")],
        "combine": [StrOptions(set(COMBINES))],
        "word_dim": [None, Interval(Integral, 1, None, closed="left")],
        "negative": [Interval(Integral, 1, None, closed="left")],
        "ns_exponent": [Interval(Real, None, None, closed="neither")],
        "sample": [Interval(Real, 0, None, closed="left")],
        "min_count": [Interval(Integral, 1, None, closed="left")],
        "max_vocab": [None, Interval(Integral, 1, None, closed="left")],
        "ngram": [Interval(Integral, 1, None, closed="left")],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "min_lr": [Interval(Real, 0, None, closed="left")],
        "doc_lr": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "rounding": [StrOptions(set(ROUNDINGS))],
        "noise": [Interval(Real, 0, None, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "shared_negatives": ["boolean"],
        "infer_epochs": [None, Interval(Integral, 1, None, closed="left")],
        "tokenizer": [None, callable],
        "n_jobs": [None, Integral],
        "device": [None, str],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 100,
        mode: str = "dbow",
        binary: bool = False,
        real_dim: int | None = None,
        window: int = 5,
        combine: str = "concat",
        word_dim: int | None = None,
        negative: int = 5,
        ns_exponent: float = 0.75,
        sample: float = 1e-3,
        min_count: int = 5,
        max_vocab: int | None = None,
        ngram: int = 1,
        epochs: int = 10,
        lr: float = 0.025,
        min_lr: float = 1e-4,
        doc_lr: float | str = "auto",
        rounding: str = "straight_through",
        noise: float = 1.0,
        dropout: float = 0.0,
        shared_negatives: bool = True,
        infer_epochs: int | None = None,
        tokenizer: Tokenizer | None = None,
        n_jobs: int | None = 1,
        device: str | None = None,
        batch_size: int = 16384,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.mode = mode
        self.binary = binary
        self.real_dim = real_dim
        self.window = window
        self.combine = combine
        self.word_dim = word_dim
        self.negative = negative
        self.ns_exponent = ns_exponent
        self.sample = sample
        self.min_count = min_count
        self.max_vocab = max_vocab
        self.ngram = ngram
        self.epochs = epochs
        self.lr = lr
        self.min_lr = min_lr
        self.doc_lr = doc_lr
        self.rounding = rounding
        self.noise = noise
        self.dropout = dropout
        self.shared_negatives = shared_negatives
        self.infer_epochs = infer_epochs
        self.tokenizer = tokenizer
        self.n_jobs = n_jobs
        self.device = device
        self.batch_size = batch_size
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Iterable[Any], y: Any = None) -> ParagraphVector:
        """Builds the vocabulary and trains on documents: strings or lists of tokens."""
        documents = tokenized(X, self.tokenizer)
        plan = self._plan()
        self.vocabulary_ = build_vocabulary(documents, self.min_count, self.max_vocab, self.ngram)
        rng = check_random_state(self.random_state)
        self.weights_ = plan.fresh_weights(self.vocabulary_, rng)
        self.embedding_ = self._trained(documents, plan, rng)
        self._rng = rng
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Iterable[Any], y: Any = None) -> ParagraphVector:
        """Trains on further documents, which become further rows of `embedding_`.

        The first call is `fit`; later ones keep its vocabulary and go on with what documents share, from the
        full step sizes again.
        """
        if not hasattr(self, "weights_"):
            return self.fit(X)
        documents = tokenized(X, self.tokenizer)
        rng = getattr(self, "_rng", None) or check_random_state(self.random_state)
        more = self._trained(documents, self._plan(), rng)
        self.embedding_ = np.concatenate([self.embedding_, more])
        return self

    def transform(self, X: Iterable[Any]) -> Float[np.ndarray, "docs dim"]:
        """Inferred document vectors d [N, d]; the same documents always give the same vectors."""
        check_is_fitted(self)
        corpus = self._encoded(tokenized(X, self.tokenizer), "transform")
        plan = self._plan(self.infer_epochs or self.epochs)
        return infer_paragraphs(
            corpus, self.vocabulary_, plan, self.weights_, self.sample, self.ns_exponent, threads(self.n_jobs)
        )

    def encode(self, X: Iterable[Any]) -> UInt8[np.ndarray, "docs bytes"]:
        """Packed codes of documents: bit i of a code is bit 7 - i % 8 of byte i // 8, padding bits are 0."""
        check_is_fitted(self)
        self._need_binary()
        return self.codes_of(self.transform(X))

    def codes_of(self, vectors: Float[np.ndarray, "docs dim"]) -> UInt8[np.ndarray, "docs bytes"]:
        """Packed codes of document vectors: [d > 0], or [W d + c > 0] for Real-Binary."""
        check_is_fitted(self)
        self._need_binary()
        w = self.weights_
        z = vectors @ w.projection.T + w.projection_bias if self.real_dim is not None else vectors
        bits = np.asarray(z > 0)
        bits[~vectors.any(axis=1)] = False  # a document without known words: all zeros, as its vector
        return np.packbits(bits, axis=1)

    @property
    def codes_(self) -> UInt8[np.ndarray, "docs bytes"]:
        return self.codes_of(self.embedding_)

    @property
    def bit_means_(self) -> Float[np.ndarray, " bits"]:
        bits = np.unpackbits(self.codes_, axis=1, count=self.n_components)
        return np.asarray(bits.mean(axis=0))

    def save(self, folder: str | Path) -> None:
        """Writes settings, vocabulary and arrays as JSON and npz; a tokenizer of your own is not written."""
        check_is_fitted(self)
        arrays = {**self.weights_.arrays(), "embedding": self.embedding_}
        save_text_vectors(folder, "ParagraphVector", self.get_params(), self.vocabulary_, arrays)

    @classmethod
    def load(cls, folder: str | Path, tokenizer: Tokenizer | None = None) -> ParagraphVector:
        """What `save` wrote; ValueError when the folder does not hold a whole, consistent model."""
        saved = load_text_vectors(folder, "ParagraphVector", set(cls().get_params()), tokenizer)
        model = cls(**saved.settings)
        model._validate_params()
        plan = model._plan()
        fresh = plan.fresh_weights(Vocabulary(("word",), np.ones(1, np.int64)), check_random_state(0))
        V = len(saved.vocabulary)
        shapes = {name: array.shape for name, array in fresh.arrays().items()}
        shapes["outputs"] = (V, padded(plan.hidden + 1))
        shapes["words"] = (V if plan.dm else 0, shapes["words"][1])
        model.vocabulary_ = saved.vocabulary
        model.weights_ = ParagraphWeights(**{n: checked_array(saved, n, s) for n, s in shapes.items()})
        model.embedding_ = checked_array(saved, "embedding", (None, plan.vector_dim))
        return model

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.requires_fit = True
        return tags

    @property
    def _n_features_out(self) -> int:
        return int(self.embedding_.shape[1])

    def _need_binary(self) -> None:
        if not self.binary:
            raise ValueError("binary=False: there are no codes; fit with binary=True")

    def _plan(self, epochs: int | None = None) -> ParagraphPlan:
        if self.real_dim is not None and not self.binary:
            raise ValueError(f"real_dim={self.real_dim} belongs to Real-Binary codes: set binary=True")
        if self.ngram > 1 and self.mode == "dm":
            raise ValueError(f'ngram={self.ngram} needs mode="dbow": "dm" predicts single words')
        word_dim = self.n_components if self.word_dim is None else self.word_dim
        if self.mode == "dm" and self.combine == "mean" and not self.binary and word_dim != self.n_components:
            raise ValueError(
                f'combine="mean" averages documents and words: word_dim={word_dim} must be n_components='
                f"{self.n_components}"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is above lr={self.lr}: the step falls from lr to min_lr")
        auto = self.lr
        if self.binary:
            auto = BINARY_STEP if self.real_dim is None else REAL_BINARY_STEPS * self.lr
        return ParagraphPlan(
            size=self.n_components,
            real_dim=self.real_dim,
            dm=self.mode == "dm",
            how=ROUNDINGS[self.rounding] if self.binary else 0,
            noise=float(self.noise),
            dropout=float(self.dropout),
            negative=self.negative,
            block=BLOCK if self.shared_negatives else 1,
            shared=BLOCK if self.shared_negatives else self.negative,
            window=self.window,
            combine=COMBINES[self.combine],
            word_dim=word_dim,
            lr=float(self.lr),
            doc_lr=float(auto) if self.doc_lr == "auto" else float(self.doc_lr),
            end_share=float(self.min_lr / self.lr),
            epochs=self.epochs if epochs is None else epochs,
        )

    def _encoded(self, documents: list[list[str]], doing: str) -> EncodedCorpus:
        corpus = self.vocabulary_.encode(documents, self.ngram)
        empty = int((np.diff(corpus.offsets) == 0).sum())
        if empty:
            first = int(np.argmax(np.diff(corpus.offsets) == 0))
            warnings.warn(
                f"{doing}: {empty} of {len(corpus)} documents (first: number {first}) have no word of the "
                "vocabulary; their vectors are zeros",
                UserWarning,
                stacklevel=4,
            )
        return corpus

    def _trained(self, documents: list[list[str]], plan: ParagraphPlan, rng: Any) -> np.ndarray:
        corpus = self._encoded(documents, "fit")
        vectors = plan.fresh_documents(len(corpus), rng)
        if self.device is not None:
            from gradatim.models.paragraph_torch import train_in_torch

            train_in_torch(
                corpus, self.vocabulary_, plan, self.weights_, vectors, self.sample, self.ns_exponent, rng,
                self.device, self.batch_size,
            )  # fmt: skip
        else:
            train_paragraphs(
                corpus, self.vocabulary_, plan, self.weights_, vectors, self.sample, self.ns_exponent, rng,
                threads(self.n_jobs),
            )  # fmt: skip
        vectors[np.diff(corpus.offsets) == 0] = 0.0
        return vectors
