"""Paper 16's trials: codes of held-out documents by Hamming distance, and senses of pseudo-words.

Codes: documents are docstrings, relevant is what comes from the same module; queries are held out of all
training and get their vectors by inference. Senses: pairs of words are merged in the same text and have to be
told apart again by their contexts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from gradatim.bench import Arm, Curve, Outcome, Scale
from gradatim.inference.hamming import HammingIndex, hamming_distances
from gradatim.tasks.docstrings import LabelledDocuments, docstring_topics
from gradatim.tasks.pseudo_words import PseudoWords, pseudo_words
from gradatim.tasks.retrieval import RetrievalScores
from gradatim.tasks.tied_retrieval import retrieval_scores, shared_labels

DATA_VARIABLE = "GRADATIM_TEXTS"
CONTEXT = 5


@dataclass(frozen=True)
class Split:
    """Documents, their topics, and which rows are queries."""

    documents: list[list[str]]
    labels: np.ndarray
    queries: np.ndarray
    pool: np.ndarray

    @property
    def relevance(self) -> np.ndarray:
        return shared_labels(self.labels[self.queries], self.labels[self.pool])

    def of(self, rows: np.ndarray) -> list[list[str]]:
        return [self.documents[i] for i in rows]


def texts(scale: Scale) -> LabelledDocuments:
    """The docstring topics, or for `packages: None` the folder that GRADATIM_TEXTS names."""
    if scale["packages"] is None:
        return folder_topics(os.environ.get(DATA_VARIABLE, ""))
    return _docstrings(tuple(scale["packages"]), int(scale["least_documents"]))


@lru_cache(maxsize=2)
def _docstrings(packages: tuple[str, ...], least: int) -> LabelledDocuments:
    return docstring_topics(packages, least)


def folder_topics(folder: str) -> LabelledDocuments:
    """A folder with one sub-folder of text files per topic, as 20 Newsgroups and RCV1 exports come.

    Raises ValueError when there is none, with what to set.
    """
    import re

    root = Path(folder)
    topics = sorted(p for p in root.iterdir() if p.is_dir()) if folder and root.is_dir() else []
    if not topics:
        raise ValueError(f"set {DATA_VARIABLE}=FOLDER to a folder with one sub-folder of texts per topic")
    documents, labels = [], []
    for i, topic in enumerate(topics):
        for file in sorted(p for p in topic.rglob("*") if p.is_file()):
            words = re.findall(r"[a-z]+", file.read_text(encoding="utf-8", errors="replace").lower())
            if words:
                documents.append(tuple(words))
                labels.append(i)
    return LabelledDocuments(tuple(documents), np.array(labels), tuple(t.name for t in topics))


def split(scale: Scale, seed: int) -> Split:
    """A random share of the documents as queries, drawn by the seed."""
    data = texts(scale)
    order = np.random.default_rng([seed, 16]).permutation(len(data.documents))
    n = min(int(scale["queries"]), len(order) // 4)
    return Split([list(d) for d in data.documents], data.labels, np.sort(order[:n]), np.sort(order[n:]))


def run_trial(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """One arm of part A (codes) or part B (senses)."""
    if arm.settings["part"] == "codes":
        return codes_outcome(arm.settings, seed, scale)
    return senses_outcome(arm.settings, seed, scale)


# --- A: codes ----------------------------------------------------------------------------------------------


def codes_outcome(settings: Mapping[str, Any], seed: int, scale: Scale) -> Outcome:
    """MAP and NDCG@10 of one way to make codes (or of real vectors by cosine)."""
    s, bits = split(scale, seed), int(settings.get("bits", 0))
    kind, recipe = settings["kind"], scale["recipes"].get(settings.get("recipe", ""), {})
    if kind == "tfidf":
        query, pool = tfidf(s)
        return _codes_result(retrieval_scores((query @ pool.T).toarray(), s.relevance))
    if kind == "autoencoder":
        from gradatim.studies.text_vectors_hashing import autoencoder_codes

        return _hamming_result(*autoencoder_codes(s.of(s.queries), s.of(s.pool), bits, recipe, seed), s)
    if kind == "lsa":
        query, pool = lsa(s, bits, recipe, seed)
        return _hamming_result(*hash_vectors("itq", query, pool, bits, seed), s)
    model = fitted_paragraphs(settings, bits, s, scale, seed)
    vectors = model.transform(s.of(s.queries))
    if kind == "cosine":
        return _codes_result(retrieval_scores(_unit(vectors) @ _unit(model.embedding_).T, s.relevance))
    if kind == "paragraph-hash":
        return _hamming_result(*hash_vectors(settings["hash"], vectors, model.embedding_, bits, seed), s)
    codes = model.codes_of(vectors)
    found = _hamming_result(codes, model.codes_, s, model.bit_means_)
    if settings.get("real_dim"):
        return Outcome({**found.metrics, **_reranked(codes, vectors, model, s)}, found.curves)
    return found


def fitted_paragraphs(settings: Mapping[str, Any], bits: int, s: Split, scale: Scale, seed: int) -> Any:
    """The paragraph vectors of an arm, trained on the pool."""
    from gradatim.models.paragraph_vector import ParagraphVector

    recipe = dict(scale["recipes"][settings["recipe"]])
    real = max(bits, int(recipe.pop("real", bits)))
    options = {**scale["paragraphs"], "n_components": real, **recipe}
    if settings["kind"] == "binary":
        options |= {
            "binary": True,
            "rounding": settings.get("rounding", "straight_through"),
            "real_dim": settings.get("real_dim"),
            "mode": settings.get("mode", "dbow"),
        }
        if not settings.get("real_dim"):
            options["dropout"] = scale["dropouts"][str(bits)]
    return ParagraphVector(**options, random_state=seed % 2**31).fit(s.of(s.pool))


def hash_vectors(
    how: str,
    query: Float[np.ndarray, "queries dim"],
    pool: Float[np.ndarray, "docs dim"],
    bits: int,
    seed: int,
) -> tuple[UInt8[np.ndarray, "queries bytes"], UInt8[np.ndarray, "docs bytes"]]:
    """Codes of real vectors: signs, signs against medians, random hyperplanes, or ITQ (through faiss)."""
    if how == "sign":
        return _pack(query > 0), _pack(pool > 0)
    if how == "median":
        middle = np.median(pool, axis=0)
        return _pack(query > middle), _pack(pool > middle)
    if how == "lsh":
        planes = np.random.default_rng([seed, 1]).normal(size=(pool.shape[1], bits))
        return _pack(query @ planes > 0), _pack(pool @ planes > 0)
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        itq = faiss.ITQTransform(pool.shape[1], bits, True)
        unit = np.ascontiguousarray(_unit(pool), dtype=np.float32)
        itq.train(unit)
        asked = np.ascontiguousarray(_unit(query), dtype=np.float32)
        return _pack(itq.apply(asked) > 0), _pack(itq.apply(unit) > 0)
    finally:
        faiss.omp_set_num_threads(before)


def tfidf(s: Split, **options: Any) -> tuple[Any, Any]:
    """tf-idf rows of unit length (logarithmic counts) of queries and pool, fitted on the pool."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=_as_it_is, **{"min_df": 5, "sublinear_tf": True, **options})
    pool = vectorizer.fit_transform(s.of(s.pool))
    return vectorizer.transform(s.of(s.queries)), pool


def lsa(s: Split, bits: int, recipe: Mapping[str, Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Truncated singular vectors of weighted counts: `dim` of the recipe, or as many as there are bits."""
    from sklearn.decomposition import TruncatedSVD

    query, pool = tfidf(s, **{name: value for name, value in recipe.items() if name != "dim"})
    svd = TruncatedSVD(max(bits, int(recipe["dim"])), random_state=seed % 2**31)
    reduced = svd.fit_transform(pool)
    return svd.transform(query).astype(np.float32), reduced.astype(np.float32)


def _as_it_is(words: list[str]) -> list[str]:
    return words


def _hamming_result(
    query: np.ndarray, pool: np.ndarray, s: Split, means: np.ndarray | None = None
) -> Outcome:
    scores = retrieval_scores(hamming_distances(query, pool), s.relevance, distances=True)
    found = _codes_result(scores)
    extra = {"distinct": len(np.unique(pool, axis=0)) / len(pool)}
    if means is not None:
        extra["dead_bits"] = float(np.mean((means < 0.02) | (means > 0.98)))
    return Outcome({**found.metrics, **extra}, found.curves)


def _codes_result(scores: RetrievalScores) -> Outcome:
    values = scores.per_query["map"].round(4).tolist()
    curve = Curve(list(range(len(values))), values, "query", "average precision")
    return Outcome(scores.means(), {"figure/queries": curve})


def _reranked(codes: np.ndarray, vectors: np.ndarray, model: Any, s: Split) -> dict[str, float]:
    """NDCG@10 when codes find 100 documents and real vectors order them, and of the codes alone there."""
    index = HammingIndex(model.codes_)
    cosines, rows = index.query_then_rank(codes, vectors, model.embedding_, k=100, shortlist=100)
    similarity = np.full((len(codes), len(index)), -2.0)
    np.put_along_axis(similarity, rows, cosines.astype(np.float64), axis=1)
    ranked = retrieval_scores(similarity, s.relevance)
    cosine = retrieval_scores(_unit(vectors) @ _unit(model.embedding_).T, s.relevance)
    return {"reranked ndcg@10": ranked["ndcg@10"], "cosine ndcg@10": cosine["ndcg@10"]}


def _pack(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits, axis=1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)


# --- B: senses ---------------------------------------------------------------------------------------------


def senses_outcome(settings: Mapping[str, Any], seed: int, scale: Scale) -> Outcome:
    """Mean adjusted Rand index over pseudo-words, and how many senses of theirs stay in use."""
    made = merged(scale, seed)
    if settings["kind"] == "kmeans":
        clusters, alive = kmeans_clusters(made, scale, seed), 2.0
    elif settings["kind"] == "one":
        clusters, alive = {t: np.zeros(len(o), int) for t, o in made.occurrences.items()}, 1.0
    else:
        clusters, alive = sense_clusters(made, settings, scale, seed)
    from sklearn.metrics import adjusted_rand_score

    found = [
        float(adjusted_rand_score([o.sense for o in occurrences], clusters[token]))
        for token, occurrences in made.occurrences.items()
    ]
    curve = Curve(list(range(len(found))), np.round(found, 4).tolist(), "pseudo-word", "adjusted Rand index")
    return Outcome({"ari": float(np.mean(found)), "senses in use": alive}, {"figure/words": curve})


def merged(scale: Scale, seed: int) -> PseudoWords:
    """The corpus without stop words, with this seed's pseudo-words."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    documents = [[w for w in d if len(w) > 1 and w not in ENGLISH_STOP_WORDS] for d in texts(scale).documents]
    return pseudo_words(documents, int(scale["pairs"]), seed, tuple(scale["counts"]))


def sense_clusters(
    made: PseudoWords, settings: Mapping[str, Any], scale: Scale, seed: int
) -> tuple[dict[str, np.ndarray], float]:
    """The most probable sense of every occurrence, and the mean number of senses in use."""
    from gradatim.models.sense_skip_gram import SenseSkipGram

    options = {**dict(scale["senses"]), **dict(settings.get("options", {}))}
    model = SenseSkipGram(**options, random_state=seed % 2**31).fit(made.documents)
    clusters = {
        token: np.array(
            [int(model.disambiguate(token, made.context(o, CONTEXT)).argmax()) for o in occurrences]
        )
        for token, occurrences in made.occurrences.items()
    }
    rows = [model.vocabulary_.index[token] for token in made.occurrences]
    return clusters, float((model.priors_[rows] > 0).sum(axis=1).mean())


def kmeans_clusters(made: PseudoWords, scale: Scale, seed: int) -> dict[str, np.ndarray]:
    """k-means with the true number of clusters on mean context vectors of plain skip-gram."""
    from sklearn.cluster import KMeans

    from gradatim.models.skip_gram import SkipGram

    model = SkipGram(**dict(scale["skip_gram"]), random_state=seed % 2**31).fit(made.documents)
    index, clusters = model.vocabulary_.index, {}
    for token, occurrences in made.occurrences.items():
        contexts = np.zeros((len(occurrences), model.n_components), np.float32)
        for i, occurrence in enumerate(occurrences):
            known = [index[w] for w in made.context(occurrence, CONTEXT) if w in index]
            if known:
                contexts[i] = model.output_vectors_[known].mean(axis=0)
        clusters[token] = KMeans(2, n_init=4, random_state=seed % 2**31).fit_predict(_unit(contexts))
    return clusters


def data_version(scale: Scale) -> str:
    """Documentation is a function of the packages' versions."""
    if scale["packages"] is None:
        return f"folder {os.environ.get(DATA_VARIABLE, 'not set')}"
    names = {"sklearn": "scikit-learn"}
    return "; ".join(f"{p} {version(names.get(p, p))}" for p in scale["packages"])
