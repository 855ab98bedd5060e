"""Retrieval by generating: a language model writes n-grams of the corpus, and they name the documents.

"Autoregressive Search Engines: Generating Substrings as Document Identifiers" (Bevilacqua, Ottaviano, Lewis,
Yih, Riedel, Petroni, NeurIPS 2022, arXiv 2204.10628). Without the paper's training (`tasks.span_pairs`) a
language model does not know what to write: then plain word matching is better by far.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor

from gradatim.inference.index_file import IndexFormatError
from gradatim.inference.index_text import clean, text_of, token_ids, token_lists, vocabulary_size
from gradatim.inference.ngram_scoring import KeyScoring, ScoredDocument, score_documents, unigram_weights_of
from gradatim.inference.query_keys import (
    copied_log_probs,
    ngram_log_probs,
    occurring,
    query_ngrams,
    unigram_keys,
)
from gradatim.inference.substring_beams import BeamSettings, Decoded, Key, decode
from gradatim.inference.substring_index import SubstringIndex
from gradatim.inference.token_index import TokenIndex

PROMPTS = {"body": "{query} || body || +", "title": "{query} || title || +"}
"""The markers that the paper trains with."""

INDEX_FILE, SETTINGS_FILE = "tokens.index", "seal.json"
_FORMAT = 1
_NOT_SAVED = ("model", "tokenizer")


@dataclass(frozen=True)
class Hit:
    """A document that was found: its id, its score, and the n-grams that found it.

    keys   (text, count in the corpus, what it added to the score), best first
    """

    doc_id: str
    score: float
    keys: list[tuple[str, int, float]]


class SEALRetriever(BaseEstimator):
    """Searches documents by the n-grams that a language model generates for a query.

    Give documents to `fit`, or a ready index to `from_index`; then `search`.

    Args:
        model, tokenizer: any causal or encoder-decoder model of transformers, and its tokenizer.
        num_beams, ngram_length: of the search for body n-grams; those of every length up to it are keys.
        alpha, beta, smoothing, max_hits, fully_score, scoring, single_key, length_penalty, partial_keys:
            see `KeyScoring`.
        query_ngrams: also use the query's own n-grams of up to three words.
        titles: also generate titles, where `fit` was given some; `title_length` is their longest.
        unigrams: how many of the likeliest first tokens count where nothing better does; 0: none.
        rescore: score the query's n-grams with the model; without it they are left out, unless copied. What
            was decoded carries the model's own score already.
        copying: ours, 0 in the paper: a share c of the generator's probability that copies the query,
            beginning at any of its words alike: P(n|q) becomes (1 - c) P(n|q) + c / words for its n-grams. A
            small generator trained from nothing does not copy by itself, as a pretrained one does; then this
            gives the query's rare words their weight.
        prompt: a text with {query}, or one each for "body" and "title"; None: the paper's markers.
        delimiter: the text between a title and its body.
        batch_size: queries at once.
        memory: of the index that `fit` builds, see `TokenIndex.build`.

    After `fit`: `index_` and `titled_`. Raises ValueError for settings out of range when they are used.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        num_beams: int = 15,
        ngram_length: int = 10,
        alpha: float = 2.0,
        beta: float = 0.8,
        smoothing: float = 5.0,
        max_hits: int = 1500,
        fully_score: int = 1500,
        scoring: str = "intersective",
        query_ngrams: bool = True,
        titles: bool = True,
        unigrams: int = 5000,
        rescore: bool = True,
        copying: float = 0.0,
        prompt: str | Mapping[str, str] | None = None,
        single_key: float = 0.0,
        length_penalty: float = 0.0,
        partial_keys: bool | None = None,
        title_length: int = 15,
        delimiter: str = "@@",
        batch_size: int = 8,
        memory: str = "auto",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.num_beams = num_beams
        self.ngram_length = ngram_length
        self.alpha = alpha
        self.beta = beta
        self.smoothing = smoothing
        self.max_hits = max_hits
        self.fully_score = fully_score
        self.scoring = scoring
        self.query_ngrams = query_ngrams
        self.titles = titles
        self.unigrams = unigrams
        self.rescore = rescore
        self.copying = copying
        self.prompt = prompt
        self.single_key = single_key
        self.length_penalty = length_penalty
        self.partial_keys = partial_keys
        self.title_length = title_length
        self.delimiter = delimiter
        self.batch_size = batch_size
        self.memory = memory

    def fit(
        self,
        documents: Sequence[str],
        titles: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
    ) -> SEALRetriever:
        """Index documents; `ids` name them in hits (default: their numbers).

        A document is its title, the delimiter and its body. Raises ValueError for no documents, for titles or
        ids of another number, and for `ngram_length` above the longest document.
        """
        for name, given in (("titles", titles), ("ids", ids)):
            if given is not None and len(given) != len(documents):
                raise ValueError(f"{len(given)} {name} for {len(documents)} documents")
        bodies = list(token_lists(documents, self.tokenizer))
        if titles is not None:
            mark = self._delimiter()
            heads = token_lists(titles, self.tokenizer)
            bodies = [[*head, *mark, *body] for head, body in zip(heads, bodies, strict=True)]
        longest = max(map(len, bodies), default=0)
        if bodies and self.ngram_length > longest:
            raise ValueError(
                f"ngram_length={self.ngram_length}, but the longest document has {longest} tokens; lower it"
            )
        memory: Any = self.memory
        self.index_: SubstringIndex = TokenIndex.build(
            bodies,
            labels=[str(i) for i in range(len(bodies))] if ids is None else list(ids),
            vocab_size=vocabulary_size(self.tokenizer),
            memory=memory,
        )
        self.titled_ = titles is not None
        return self

    @classmethod
    def from_index(
        cls, index: SubstringIndex, model: Any, tokenizer: Any, *, titled: bool = False, **settings: Any
    ) -> SEALRetriever:
        """A retriever over an index of the same tokenizer's ids; its labels, if any, are the document ids.

        `titled` says that documents begin with a title and the delimiter.
        """
        made = cls(model, tokenizer, **settings)
        made.index_ = index
        made.titled_ = titled
        return made

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """The `k` best documents of each query, ties by their place in the corpus.

        Queries may be of any length and script; what does not fit the model's context is cut off. Raises
        TypeError for a single string, ValueError for k below 1.
        """
        if isinstance(queries, str):
            raise TypeError("queries is a list of strings; for one query give [query]")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        return [[self._hit(scored) for scored in found] for found in self.search_documents(list(queries), k)]

    def search_documents(self, queries: Sequence[str], k: int | None = 10) -> list[list[ScoredDocument]]:
        """`search` with document numbers and keys of token ids."""
        index, scoring = self._index(), self.key_scoring()
        found: list[list[ScoredDocument]] = []
        for begin in range(0, len(queries), self.batch_size):
            for keys, first in self.keys_of(queries[begin : begin + self.batch_size]):
                weights = None
                if self.unigrams and scoring.scoring == "intersective":
                    weights = unigram_weights_of(index, first, self.unigrams, self.smoothing, self._barred())
                found.append(score_documents(index, keys, scoring, weights, k))
        return found

    def keys_of(self, queries: Sequence[str]) -> list[tuple[list[Key], np.ndarray]]:
        """All keys of each query, before weighing, and the log-probabilities [vocab] of the first token."""
        index = self._index()
        if not 0 <= self.copying <= 1:
            raise ValueError(f"copying must be a share from 0 to 1, got {self.copying}")
        was = getattr(self.model, "training", False)
        if was:
            self.model.eval()
        try:
            ids, mask = self._prompts(queries, "body", self.ngram_length)
            body = BeamSettings(num_beams=self.num_beams, max_new_tokens=self.ngram_length)
            decoded = decode(self.model, index, ids, mask, body)
            heads = self._title_keys(queries) if self.titles and self.titled_ else [[] for _ in queries]
            with_own = self.query_ngrams and (self.rescore or self.copying > 0)
            own = self._query_keys(queries, ids, mask) if with_own else None
        finally:
            if was:
                self.model.train()
        return [
            self._gather(each, heads[i], own[i] if own is not None else []) for i, each in enumerate(decoded)
        ]

    def key_scoring(self) -> KeyScoring:
        """The settings of scoring in one piece."""
        scoring: Any = self.scoring
        return KeyScoring(
            scoring=scoring,
            alpha=self.alpha,
            beta=self.beta,
            smoothing=self.smoothing,
            max_hits=self.max_hits,
            fully_score=self.fully_score,
            single_key=self.single_key,
            length_penalty=self.length_penalty,
            partial_keys=self.partial_keys,
        )

    def save(self, folder: str | Path) -> None:
        """Write the index and the settings to a folder; the model and the tokenizer stay where they are.

        Raises TypeError for an index that is not one file.
        """
        index = self._index()
        if not isinstance(index, TokenIndex):
            raise TypeError(f"a {type(index).__name__} has files of its own; save it, then use from_index")
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in self.get_params(False).items() if name not in _NOT_SAVED}
        if isinstance(self.prompt, Mapping):
            settings["prompt"] = dict(self.prompt)
        document = {"format": _FORMAT, "titled": self.titled_, "settings": settings}
        index.save(target / INDEX_FILE)
        (target / SETTINGS_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: Any,
        tokenizer: Any,
        *,
        mmap: bool = True,
        verify: bool = True,
        **settings: Any,
    ) -> SEALRetriever:
        """Open what `save` wrote, with the model and the tokenizer it was made with; `settings` override.

        Raises IndexFormatError for files that are damaged, FileNotFoundError where there are none.
        """
        index = TokenIndex.load(Path(folder) / INDEX_FILE, mmap=mmap, verify=verify)
        try:
            document = json.loads((Path(folder) / SETTINGS_FILE).read_text(encoding="utf-8"))
            saved = document["settings"]
            known = set(cls._get_param_names()) - set(_NOT_SAVED)
            good = document["format"] == _FORMAT and set(saved) <= known
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if not good:
            raise IndexFormatError(f"{SETTINGS_FILE} is damaged or of another release; build the index again")
        titled = bool(document["titled"])
        return cls.from_index(index, model, tokenizer, titled=titled, **{**saved, **settings})

    # --- Parts of a search ---------------------------------------------------------------------------------

    def _gather(self, decoded: Decoded, heads: list[Key], own: list[Key]) -> tuple[list[Key], np.ndarray]:
        first = decoded.first.double().cpu().numpy()
        keys = [*decoded.keys, *heads, *own]
        if self.unigrams:
            most = min(len(keys), self.unigrams)
            keys += unigram_keys(self._index(), first, most, self._barred())
        return keys, first

    def _title_keys(self, queries: Sequence[str]) -> list[list[Key]]:
        """Whole titles, generated from the beginning of a document to the delimiter."""
        index, mark = self._index(), self._delimiter()
        ids, mask = self._prompts(queries, "title", self.title_length)
        settings = BeamSettings(
            num_beams=self.num_beams,
            max_new_tokens=self.title_length,
            start=(index.eod,),
            finish_with=(mark[-1],),
        )
        found = decode(self.model, index, ids, mask, settings)
        return [
            [key for key in each.keys if key.complete and key.tokens[-len(mark) :] == tuple(mark)]
            for each in found
        ]

    def _query_keys(self, queries: Sequence[str], ids: Tensor, mask: Tensor) -> list[list[Key]]:
        index = self._index()
        here = [occurring(index, query_ngrams(query, self.tokenizer)) for query in queries]
        # The prompt was cut to leave room for ngram_length tokens.
        ngrams = [[n for n in found if len(n) <= self.ngram_length] for found, _ in here]
        numbers = [dict(zip(found, counts, strict=True)) for found, counts in here]
        if self.rescore:
            scores = ngram_log_probs(self.model, ids, mask, ngrams)
        else:
            scores = [[-np.inf] * len(of_query) for of_query in ngrams]
        if self.copying:
            scores = [
                copied_log_probs(of_query, len(query.split()), self.copying)
                for of_query, query in zip(scores, queries, strict=True)
            ]
        return [
            [Key(n, s, int(number[n]), True) for n, s in zip(of_query, of_scores, strict=True)]
            for of_query, of_scores, number in zip(ngrams, scores, numbers, strict=True)
        ]

    def _prompts(self, queries: Sequence[str], kind: str, room: int) -> tuple[Tensor, Tensor]:
        """Token ids and mask of the prompts, padded on the left, cut to the model's context less `room`."""
        template = self._template(kind)
        limit = getattr(getattr(self.model, "config", None), "max_position_embeddings", None)
        if getattr(getattr(self.model, "config", None), "is_encoder_decoder", False):
            room = 0
        rows = [self._prompt(template, clean(query).strip(), limit and limit - room) for query in queries]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return ids, mask

    def _prompt(self, template: str, query: str, limit: int | None) -> list[int]:
        while True:
            ids = self._encode(template.replace("{query}", query))
            if limit is None or len(ids) <= limit or not query:
                return ids if limit is None else ids[-limit:]
            query = query[: min(len(query) - 1, len(query) * limit // len(ids))]

    def _encode(self, prompt: str) -> list[int]:
        if hasattr(self.tokenizer, "get_vocab_size"):
            return list(self.tokenizer.encode(prompt).ids)
        if hasattr(self.tokenizer, "get_vocab"):
            return list(self.tokenizer(prompt, verbose=False)["input_ids"])
        return list(self.tokenizer(prompt))

    def _template(self, kind: str) -> str:
        given = PROMPTS if self.prompt is None else self.prompt
        template = given if isinstance(given, str) else given.get(kind, PROMPTS[kind])
        if "{query}" not in template:
            raise ValueError(f"the {kind} prompt {template!r} has no place for the {{query}}")
        return template

    def _delimiter(self) -> list[int]:
        return token_ids(self.delimiter, self.tokenizer)

    def _barred(self) -> list[int]:
        return list(getattr(self.tokenizer, "all_special_ids", ()))

    def _hit(self, scored: ScoredDocument) -> Hit:
        index = self._index()
        name = str(scored.doc) if index.labels is None else index.labels[scored.doc]
        keys = [(text_of(key.tokens, self.tokenizer), key.count, gain) for key, gain in scored.keys]
        return Hit(name, scored.score, keys)

    def _index(self) -> SubstringIndex:
        if not hasattr(self, "index_"):
            raise NotFittedError("this SEALRetriever has no index: call fit, or use from_index or load")
        return self.index_
