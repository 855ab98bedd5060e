"""Study 13's world: queries and documents that share few words, which BM25 cannot bridge and a model can.

120 concepts; a document says a concept by a phrase of two or three sub-tokens (each ambiguous alone), a query
by a word of its own, save for a share of concepts where both use the phrase. Queries hold four of a
document's twelve concepts. The generator learns from the queries of four fifths of the documents.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradatim.bench import Curve, Outcome, Scale
from gradatim.bench.fit import fit
from gradatim.inference.ngram_scoring import KeyScoring, score_documents
from gradatim.inference.substring_beams import BeamSettings, Decoded, decode
from gradatim.inference.token_index import TokenIndex
from gradatim.tasks.retrieval import RetrievalTask, bm25_run

PAD, SEPARATOR, FIRST = 0, 1, 2
FILLERS, SUB_TOKENS, CONCEPTS = 20, 80, 120
PER_DOCUMENT, PER_QUERY, TARGET = 12, 4, 5
VOCABULARY = FIRST + FILLERS + SUB_TOKENS + CONCEPTS
TRAINED_SHARE = 0.8
DEPTH = 100

SCORINGS: Mapping[str, KeyScoring] = {
    "intersective": KeyScoring(),
    "lm": KeyScoring(scoring="lm"),
    "lm+fm": KeyScoring(scoring="lm+fm"),
    "lm, all lengths": KeyScoring(scoring="lm", partial_keys=True),
    "beta=0": KeyScoring(beta=0.0),
    "alpha=1": KeyScoring(alpha=1.0),
}


@dataclass(frozen=True)
class World:
    """Documents as tokens, the concepts of each and where their phrases begin, and both ways to say them."""

    documents: list[list[int]]
    concepts: list[list[int]]
    starts: list[list[int]]
    phrases: list[list[int]]
    words: list[list[int]]

    @property
    def trained(self) -> int:
        """How many documents, the first ones, the generator learns from."""
        return int(TRAINED_SHARE * len(self.documents))

    def query(self, concepts: Sequence[int], translated: bool = False) -> list[int]:
        """Concepts as a query says them, or as documents do."""
        say = self.phrases if translated else self.words
        return [token for concept in concepts for token in say[concept]]


@functools.lru_cache(maxsize=8)
def make_world(seed: int, documents: int, shared: float) -> World:
    """A seed's world; `shared` is the share of concepts that queries say as documents do."""
    rng = np.random.default_rng([seed, 13])
    subs = FIRST + FILLERS + np.arange(SUB_TOKENS)
    phrases: list[list[int]] = []
    while len(phrases) < CONCEPTS:
        phrase = rng.choice(subs, size=int(rng.integers(2, 4)), replace=False).tolist()
        if phrase not in phrases:
            phrases.append(phrase)
    same = set(rng.permutation(CONCEPTS)[: round(shared * CONCEPTS)].tolist())
    words = [phrases[c] if c in same else [FIRST + FILLERS + SUB_TOKENS + c] for c in range(CONCEPTS)]
    zipf = 1 / np.arange(1, CONCEPTS + 1) ** 0.8
    zipf = rng.permutation(zipf / zipf.sum())
    texts, held, begins = [], [], []
    for _ in range(documents):
        concepts = rng.choice(CONCEPTS, size=PER_DOCUMENT, replace=False, p=zipf).tolist()
        text: list[int] = []
        begin: list[int] = []
        for concept in concepts:
            begin.append(len(text))
            text += phrases[concept]
            text += (FIRST + rng.integers(0, FILLERS, int(rng.integers(0, 3)))).tolist()
        texts.append(text)
        held.append(concepts)
        begins.append(begin)
    return World(texts, held, begins, phrases, words)


@dataclass(frozen=True)
class Batches:
    """Batches of (query, separator, five tokens from where the document says one of its concepts)."""

    world: World
    steps: int
    size: int
    seed: int

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rng = np.random.default_rng([self.seed, 1])
        for _ in range(self.steps):
            rows = [self._row(rng) for _ in range(self.size)]
            longest = max(len(q) + 1 + len(t) for q, t in rows)
            ids = np.full((self.size, longest), PAD)
            labels = np.full((self.size, longest), -100)
            for i, (query, target) in enumerate(rows):
                end = len(query) + 1 + len(target)
                ids[i, :end] = [*query, SEPARATOR, *target]
                labels[i, len(query) + 1 : end] = target
            yield {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}

    def _row(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        doc = int(rng.integers(self.world.trained))
        chosen = rng.choice(PER_DOCUMENT, size=PER_QUERY, replace=False).tolist()
        begin = self.world.starts[doc][chosen[int(rng.integers(PER_QUERY))]]
        query = self.world.query([self.world.concepts[doc][i] for i in chosen])
        return query, self.world.documents[doc][begin : begin + TARGET]


def small_model(seed: int, width: int = 64, layers: int = 2, heads: int = 4) -> Any:
    """A pre-norm decoder with tied embeddings; about 117,000 weights at the default size."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def train(world: World, seed: int, scale: Scale, evaluate: Any = None) -> tuple[Any, list[float], Any]:
    """The trained generator, its losses, and what `evaluate` gave along the way."""
    steps = int(scale["steps"])
    model = small_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=float(scale["lr"]), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, float(scale["lr"]), total_steps=steps + 1)
    found = fit(
        model,
        optimizer,
        Batches(world, steps, int(scale["batch"]), seed),
        language_loss,
        scheduler=schedule,
        steps=steps,
        clip=1.0,
        evaluate=evaluate,
        evaluate_every=max(1, steps // int(scale["looks"])) if evaluate else None,
        seed=seed,
    )
    return model.eval(), list(found.losses), found


def language_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the target tokens."""
    ids = batch["input_ids"]
    logits = model(input_ids=ids, attention_mask=(ids != PAD).long(), use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


@dataclass(frozen=True)
class Bench:
    """An index of all documents, and test queries of documents that training did not see."""

    world: World
    index: TokenIndex
    asked: list[tuple[int, list[int]]]  # document, concepts

    @functools.cached_property
    def substrings(self) -> frozenset[tuple[int, ...]]:
        """All n-grams of all documents in a set of their own: the index is what is on trial."""
        return frozenset(
            tuple(text[i : i + n])
            for text in self.world.documents
            for n in range(1, TARGET + 1)
            for i in range(len(text) - n + 1)
        )

    def prompts(self) -> tuple[Tensor, Tensor]:
        """Queries and separators with padding on the left, and its mask."""
        rows = [[*self.world.query(concepts), SEPARATOR] for _, concepts in self.asked]
        longest = max(map(len, rows))
        ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return ids, mask


def make_bench(seed: int, scale: Scale) -> Bench:
    """The world of a seed and its queries, the same for every arm."""
    world = make_world(seed, int(scale["documents"]), float(scale["shared"]))
    rng = np.random.default_rng([seed, 2])
    asked = []
    for _ in range(int(scale["queries"])):
        doc = int(rng.integers(world.trained, len(world.documents)))
        chosen = rng.choice(PER_DOCUMENT, size=PER_QUERY, replace=False)
        asked.append((doc, [world.concepts[doc][i] for i in chosen]))
    return Bench(world, TokenIndex.build(world.documents, vocab_size=VOCABULARY), asked)


def reciprocal_ranks(bench: Bench, decoded: Sequence[Decoded], scoring: KeyScoring) -> np.ndarray:
    """1 / rank of each query's document among the best 100, 0 outside."""
    found = np.zeros(len(bench.asked))
    for i, ((doc, _), each) in enumerate(zip(bench.asked, decoded, strict=True)):
        ranked = [scored.doc for scored in score_documents(bench.index, each.keys, scoring, k=DEPTH)]
        found[i] = 1 / (1 + ranked.index(doc)) if doc in ranked else 0.0
    return found


def generator_trial(settings: Mapping[str, Any], seed: int, scale: Scale) -> Outcome:
    """Train (or not), decode every test query once, and rank documents by every way of scoring."""
    bench = make_bench(seed, scale)
    beams = BeamSettings(num_beams=int(scale["beams"]), max_new_tokens=TARGET)
    ids, mask = bench.prompts()
    few = int(scale["looked_at"])

    def look(model: nn.Module) -> dict[str, float]:
        decoded = decode(model, bench.index, ids[:few], mask[:few], beams)
        part = Bench(bench.world, bench.index, bench.asked[:few])
        return {"mrr": float(reciprocal_ranks(part, decoded, SCORINGS["intersective"]).mean())}

    curves: dict[str, Curve] = {}
    metrics: dict[str, float] = {}
    if settings["trained"]:
        model, losses, record = train(bench.world, seed, scale, look)
        metrics["training loss"] = float(np.mean(losses[-50:]))
        if metrics["training loss"] > float(scale["gate"]):
            raise RuntimeError(
                f"training loss {metrics['training loss']:.2f} is above {scale['gate']}: this generator "
                "has not learnt the world, and nothing about the method follows; take more steps"
            )
        every = max(1, len(losses) // 60)
        at = list(range(every, len(losses) + 1, every))
        smooth = [float(np.mean(losses[i - every : i])) for i in at]
        curves["loss"] = Curve(at, smooth, "step", "training loss")
        untrained = look(small_model(seed).eval())["mrr"]
        looks = [(0, untrained), *((step, found["mrr"]) for step, found in record.evaluations)]
        curves["figure/learning"] = Curve(
            [step for step, _ in looks], [mrr for _, mrr in looks], "step", "MRR"
        )
    else:
        model = small_model(seed).eval()
    decoded = decode(model, bench.index, ids, mask, beams)
    for name, scoring in SCORINGS.items():
        _record(metrics, curves, name, reciprocal_ranks(bench, decoded, scoring))
    if settings["trained"]:
        curves |= keys_of_one_query(bench, decoded)
    keys = [key for each in decoded for key in each.keys]
    metrics["valid"] = float(np.mean([key.tokens in bench.substrings for key in keys]))
    metrics["valid unconstrained"] = unconstrained_validity(model, bench, ids, mask, int(scale["beams"]))
    return Outcome({**metrics, **_headline(metrics, "intersective")}, curves)


def keys_of_one_query(bench: Bench, decoded: Sequence[Decoded]) -> dict[str, Curve]:
    """log P(n|q) over log P(n) of the first query's keys: those in its document, and the others."""
    (doc, _), keys = bench.asked[0], decoded[0].keys
    text, n = bench.world.documents[doc], bench.index.n_tokens
    inside = {tuple(text[i:j]) for i in range(len(text)) for j in range(i + 1, i + TARGET + 1)}
    curves = {}
    for name, wanted in (("in", True), ("out", False)):
        some = [key for key in keys if (key.tokens in inside) == wanted]
        smoothing = SCORINGS["intersective"].smoothing
        curves[f"figure/keys {name}"] = Curve(
            [round(float(np.log((key.count + smoothing) / (n + smoothing))), 3) for key in some],
            [round(key.log_prob, 3) for key in some],
            "log P(n)",
            "log P(n|q)",
        )
    return curves


def lexical_trial(settings: Mapping[str, Any], seed: int, scale: Scale) -> Outcome:
    """BM25 over the tokens as words: the query as it is, or as documents would say it."""
    bench = make_bench(seed, scale)
    asked = [bench.world.query(concepts, settings["translated"]) for _, concepts in bench.asked]
    task = RetrievalTask(
        "world",
        {f"q{i}": _as_text(query) for i, query in enumerate(asked)},
        {f"d{i}": _as_text(text) for i, text in enumerate(bench.world.documents)},
        {f"q{i}": {f"d{doc}": 1} for i, (doc, _) in enumerate(bench.asked)},
    )
    run = bm25_run(task, DEPTH)
    found = np.zeros(len(asked))
    for i, (doc, _) in enumerate(bench.asked):
        ranked = list(run[f"q{i}"])
        found[i] = 1 / (1 + ranked.index(f"d{doc}")) if f"d{doc}" in ranked else 0.0
    metrics: dict[str, float] = {}
    curves: dict[str, Curve] = {}
    _record(metrics, curves, "bm25", found)
    return Outcome(_headline(metrics, "bm25"), {"figure/queries bm25": curves["figure/queries bm25"]})


@torch.no_grad()
def unconstrained_validity(model: Any, bench: Bench, ids: Tensor, mask: Tensor, beams: int) -> float:
    """Share of freely generated strings (beam search, all beams) that occur in some document."""
    out = model.generate(
        ids,
        attention_mask=mask,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        max_new_tokens=TARGET,
        min_new_tokens=TARGET,
        pad_token_id=PAD,
    )
    return float(np.mean([tuple(row) in bench.substrings for row in out[:, ids.shape[1] :].tolist()]))


def _record(metrics: dict[str, float], curves: dict[str, Curve], name: str, found: np.ndarray) -> None:
    metrics[f"mrr/{name}"] = float(found.mean())
    metrics[f"hits@1/{name}"] = float((found == 1).mean())
    metrics[f"hits@10/{name}"] = float((found >= 0.1).mean())
    curves[f"figure/queries {name}"] = Curve(
        list(range(len(found))), found.round(4).tolist(), "test query", "1 / rank"
    )


def _headline(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    return {measure: metrics[f"{measure}/{name}"] for measure in ("mrr", "hits@1", "hits@10")}


def _as_text(tokens: Sequence[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)
