"""SEAL: index build, size and step, masks, aggregation and a whole query, beside plain ways."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _timing import alternate, report, row

BEAMS, PROBES = 15, 100
PEER = "SEAL FM-index"


def corpus(tokens: int) -> tuple[list[list[int]], Any, list[str], list[str]]:
    """Docstring passages as token ids of about this total, their tokenizer, their texts and summaries."""
    from gradatim.inference.index_text import token_lists
    from gradatim.models import CausalLMUnavailableError, load_causal_lm
    from gradatim.tasks import docstring_retrieval

    task = docstring_retrieval()
    try:
        _, tokenizer = load_causal_lm("smollm2")
    except CausalLMUnavailableError as error:
        print(f"a tokenizer of words stands in for SmolLM2's ({error})")
        numbers: dict[str, int] = defaultdict(lambda: len(numbers))
        tokenizer = lambda text: [numbers[word] for word in text.split()]  # noqa: E731
    documents: list[list[int]] = []
    total = 0
    for ids in token_lists(task.corpus.values(), tokenizer):
        documents.append(ids)
        total += len(ids)
        if total >= tokens:
            break
    kept = list(task.corpus)[: len(documents)]
    return documents, tokenizer, [task.corpus[name] for name in kept], [task.queries[name] for name in kept]


def size_rows(documents: list[list[int]]) -> list[dict[str, Any]]:
    """Bytes per token, which stand for times."""
    from gradatim.inference import TokenIndex

    fast, compact = (TokenIndex.build(documents, memory=memory) for memory in ("fast", "compact"))
    n = fast.n_tokens
    plain = 8 + 8  # int64 suffix array and text, as numpy makes them
    rows = []
    for name, ours, peer, peer_name, target in (
        ("fast", fast.nbytes / n, plain, "int64 suffix array + text", "at most 8"),
        ("compact", compact.nbytes / n, fast.nbytes / n, "fast", "at most 3"),
    ):
        case = f"bytes per token, {name} ({n:,} tokens)"
        rows.append(
            {"case": case, "ours": name, "ours_ms": ours, "peer": peer_name, "peer_ms": peer,
             "ratio": peer / ours, "target": target, "unit": "bytes"}
        )  # fmt: skip
    return rows


def build_rows(documents: list[list[int]], repeats: int) -> list[dict[str, Any]]:
    """Both forms; numpy's prefix doubling on a tenth beside them, scaled."""
    from gradatim.inference import TokenIndex, suffix_sort

    arrays = [np.array(document) for document in documents]
    n = sum(map(len, documents))
    text = np.concatenate([np.append(a, 0) for a in arrays]).astype(np.uint32)
    cases: dict[str, Callable[[], Any]] = {
        "fast": lambda: TokenIndex.build(arrays, memory="fast"),
        "compact": lambda: TokenIndex.build(arrays, memory="compact"),
        "numpy prefix doubling, suffix array alone": lambda: suffix_sort.prefix_doubling(text),
    }
    seconds = alternate(cases, max(2, repeats // 3), clock="cpu")
    peer = "numpy prefix doubling, suffix array alone"
    rows = []
    for name in ("fast", "compact"):
        rate = n / float(np.median(seconds[name])) / 1e6
        case = f"build, {name}: {rate:.1f}M tokens a second"
        rows.append(row(case, seconds, name, peer, "at least 1M tokens a second"))
    return rows


def prefixes(documents: list[list[int]], length: int, count: int) -> list[tuple[int, ...]]:
    """Random n-grams of the corpus."""
    rng = np.random.default_rng(length)
    long = [document for document in documents if len(document) > length]
    found = []
    for _ in range(count):
        document = long[int(rng.integers(len(long)))]
        at = int(rng.integers(len(document) - length))
        found.append(tuple(document[at : at + length]))
    return found


def plain_range(text: np.ndarray, order: np.ndarray, ngram: Sequence[int]) -> tuple[int, int]:
    """The range of an n-gram from scratch: two bisections over suffixes, in Python."""
    wanted = list(ngram)

    def first(after: bool) -> int:
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            seen = text[order[middle] : order[middle] + len(wanted)].tolist()
            if seen < wanted or (after and seen == wanted):
                low = middle + 1
            else:
                high = middle
        return low

    return first(False), first(True)


def step_rows(documents: list[list[int]], repeats: int) -> list[dict[str, Any]]:
    """One step of 15 beams: 100 candidates probed for each, by prefix length."""
    from gradatim.inference import TokenIndex
    from gradatim.inference.substring_index import ranges_of_many
    from gradatim.inference.suffix_sort import suffix_array

    indexes = {memory: TokenIndex.build(documents, memory=memory) for memory in ("fast", "compact")}
    # The plain array holds what the index holds: token + 1, and 0 between documents.
    text = np.concatenate([np.append(0, np.array(d) + 1) for d in documents]).astype(np.uint32)
    order = suffix_array(text)
    vocabulary = max(max(d) for d in documents if d) + 1
    rng = np.random.default_rng(0)
    rows = []
    for length in (1, 2, 4, 8):
        beams = prefixes(documents, length, BEAMS)
        tokens = rng.integers(0, vocabulary, (BEAMS, PROBES))
        cases: dict[str, Callable[[], Any]] = {}
        for name, index in indexes.items():
            ranges = ranges_of_many(index, beams)
            cases[name] = lambda i=index, r=ranges, d=length, t=tokens: i.probe(r, d, t)
        peer = "plain suffix array, bisected from scratch in Python"
        cases[peer] = lambda b=beams, t=tokens: [
            plain_range(text, order, [x + 1 for x in (*ngram, one)])
            for ngram, of_beam in zip(b, t.tolist(), strict=True)
            for one in of_beam
        ]
        seconds = alternate(cases, repeats, clock="cpu")
        for name in indexes:
            case = f"{BEAMS} beams x {PROBES} probes, length {length}, {name}"
            rows.append(row(case, seconds, name, peer, "at least 10x"))
    return rows


def mask_rows(documents: list[list[int]], repeats: int) -> list[dict[str, Any]]:
    """The full mask of 15 beams, beside transformers' processor over a Python trie of suffixes."""
    from transformers import PrefixConstrainedLogitsProcessor

    from gradatim.inference import SubstringLogitsProcessor, TokenIndex

    some, total = [], 0
    for document in documents:  # a trie of everything would not fit into memory
        some.append(document)
        total += len(document)
        if total > 100_000:
            break
    trie: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for document in some:
        for n in range(5):
            for i in range(len(document) - n):
                trie[tuple(document[i : i + n])].add(document[i + n])
    listed = {key: sorted(values) for key, values in trie.items()}
    vocabulary = max(max(d) for d in some if d) + 1
    index = TokenIndex.build(some)
    steps = [torch.tensor([[0, *ngram] for ngram in prefixes(some, 4, BEAMS)])[:, : 1 + n] for n in range(5)]
    scores = torch.zeros(BEAMS, vocabulary)
    theirs = PrefixConstrainedLogitsProcessor(
        lambda batch, sent: listed.get(tuple(sent[1:].tolist()), [0]), num_beams=BEAMS
    )

    def generation() -> None:
        ours = SubstringLogitsProcessor(index, prompt_length=1, eos_token_id=0)
        for ids in steps:
            ours(ids, scores)

    cases: dict[str, Callable[[], Any]] = {
        "SubstringLogitsProcessor": generation,
        "PrefixConstrainedLogitsProcessor + trie": lambda: [theirs(ids, scores) for ids in steps],
    }
    seconds = alternate(cases, repeats, clock="cpu")
    return [row(f"masks of 5 steps of {BEAMS} beams", seconds, *cases, "at least 1x")]


def aggregation_rows(documents: list[list[int]], repeats: int) -> list[dict[str, Any]]:
    """300 keys to ranked documents, without and with unigrams, beside a first stage in dictionaries."""
    from gradatim.inference import Key, KeyScoring, TokenIndex, score_documents
    from gradatim.inference.ngram_scoring import unigram_weights_of

    index = TokenIndex.build(documents)
    rng = np.random.default_rng(0)
    ngrams = list(dict.fromkeys(n for length in range(1, 9) for n in prefixes(documents, length, 80)))
    keys = [
        Key(ngrams[i], float(-rng.exponential(4)), index.count(ngrams[i]), True)
        for i in rng.permutation(len(ngrams))[:300].tolist()
    ]
    settings = KeyScoring()
    logits = 3 * rng.normal(size=index.vocab_size)
    unigrams = unigram_weights_of(index, logits - np.logaddexp.reduce(logits))

    def python() -> list[tuple[int, float]]:
        n, weights = index.n_tokens, {}
        for key in keys:
            p, given = (key.count + 5) / (n + 5), key.log_prob - 1e-10
            odds = given - math.log(-math.expm1(given)) + math.log(1 - p) - math.log(p)
            weights[key.ngram] = max(0.0, odds), key.count
        used: set[tuple[int, int]] = set()
        covered: dict[int, set[int]] = defaultdict(set)
        scores: dict[int, float] = defaultdict(float)
        for ngram, (weight, count) in sorted(weights.items(), key=lambda item: -item[1][0]):
            if count > 1500 or not weight:
                continue
            lo, hi = index.range(ngram)
            counted = set()
            for doc, place in zip(*index.occurrences(lo, hi, len(ngram)), strict=True):
                spots = {(int(doc), int(place) + i) for i in range(len(ngram))}
                if spots & used:
                    continue
                used |= spots
                if doc not in counted:
                    counted.add(doc)
                    tokens = set(ngram)
                    share = len(tokens - covered[doc]) / len(tokens)
                    scores[doc] += weight**2 * (0.2 + 0.8 * share)
                    covered[doc] |= tokens
        return sorted(scores.items(), key=lambda item: -item[1])[:10]

    peer = "Python dictionaries, first stage"
    cases = {
        "score_documents, both stages": lambda: score_documents(index, keys, settings, k=10),
        "the same with 5,000 unigrams": lambda: score_documents(index, keys, settings, unigrams, k=10),
        peer: python,
    }
    seconds = alternate(cases, repeats, clock="cpu")
    return [
        row("300 keys to ranked documents", seconds, "score_documents, both stages", peer, "below 3 ms"),
        row("300 keys and 5,000 unigrams", seconds, "the same with 5,000 unigrams", peer, "none"),
    ]


def query_row(texts: list[str], queries: list[str], repeats: int) -> dict[str, Any] | None:
    """A whole query with SmolLM2, beside bm25s on the same passages."""
    import bm25s

    from gradatim.inference import SEALRetriever
    from gradatim.models import CausalLMUnavailableError, load_causal_lm

    try:
        model, tokenizer = load_causal_lm("smollm2")
    except CausalLMUnavailableError as error:
        print(f"the row of a whole query is left out ({error})")
        return None
    made = SEALRetriever(model, tokenizer, num_beams=8, ngram_length=8, batch_size=8).fit(texts)
    lexical = bm25s.BM25()
    lexical.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    asked = queries[:8]
    cases = {
        "SEALRetriever (8 queries, SmolLM2, 8 beams)": lambda: made.search(asked),
        "bm25s": lambda: lexical.retrieve(
            bm25s.tokenize(asked, show_progress=False), k=10, show_progress=False
        ),
    }
    seconds = alternate(cases, max(2, repeats // 5), clock="cpu")
    return row("8 whole queries", seconds, *cases, "none: the language model is the cost")


def reference_rows(folder: str, documents: list[list[int]], repeats: int) -> list[dict[str, Any]]:
    """SEAL's own index and processor from a checkout: bytes, build, and constrained steps of 15 beams.

    Its documents end with a token of their own, as in its script. Before the clock runs, both sides have to
    allow the same tokens.
    """
    from _seal_reference import load

    from gradatim.inference import TokenIndex

    try:
        their_index, their_processor = load(folder)
    except ImportError as error:
        print(f"SEAL's own index does not run here, its rows are left out ({type(error).__name__}: {error})")
        return []
    end = max(max(d) for d in documents if d) + 1
    ended = [[*document, end] for document in documents]

    def build() -> Any:
        made = their_index()
        made.initialize(ended, in_memory=True)
        return made

    theirs = build()
    ours = {
        memory: TokenIndex.build(documents, vocab_size=end + 1, memory=memory)
        for memory in ("fast", "compact")
    }
    with tempfile.TemporaryDirectory() as home:
        theirs.save(f"{home}/seal")
        size = sum(path.stat().st_size for path in Path(home).iterdir()) / ours["fast"].n_tokens
    targets = {"fast": "none: bytes for speed", "compact": "at least 1x"}
    rows: list[dict[str, Any]] = [
        {"case": f"bytes per token, {memory}, beside SEAL", "ours": memory,
         "ours_ms": index.nbytes / index.n_tokens, "peer": f"{PEER}, its files", "peer_ms": size,
         "ratio": size * index.n_tokens / index.nbytes, "target": targets[memory], "unit": "bytes"}
        for memory, index in ours.items()
    ]  # fmt: skip
    cases: dict[str, Callable[[], Any]] = {
        memory: lambda m=memory: TokenIndex.build(documents, memory=m) for memory in ours
    }
    seconds = alternate({**cases, PEER: build}, max(2, repeats // 5), clock="cpu")
    rows += [row(f"build, {memory}, beside SEAL", seconds, memory, PEER, "at least 1x") for memory in ours]
    mask = their_processor(theirs, num_beams=BEAMS, pad_token_id=end, eos_token_id=end)
    for length in (1, 2, 4, 8):
        steps = _reference_steps(ours, theirs, mask, prefixes(documents, length, BEAMS), end)
        for what, of_both in zip(("mask", "ranges and continuations"), steps, strict=True):
            seconds = alternate(of_both, repeats, clock="cpu")
            for memory in ours:
                case = f"{what}, {BEAMS} beams, length {length}, {memory}, beside SEAL"
                rows.append(row(case, seconds, memory, PEER, "at least 1x"))
    return rows


def _reference_steps(
    ours: Mapping[str, Any], theirs: Any, mask: Any, beams: Sequence[tuple[int, ...]], end: int
) -> tuple[dict[str, Callable[[], Any]], dict[str, Callable[[], Any]]]:
    """One step of beams with its masks, and what it asks of the index alone; ours by form, theirs last."""
    from gradatim.inference import SubstringLogitsProcessor
    from gradatim.inference.substring_index import ranges_of_many

    ids, scores = torch.tensor([[0, *beam] for beam in beams]), torch.zeros(len(beams), end + 1)
    last, before = np.array([beam[-1] for beam in beams]), [beam[:-1] for beam in beams]
    depth = len(beams[0])
    masks: dict[str, Callable[[], Any]] = {}
    indexes: dict[str, Callable[[], Any]] = {}
    for memory, index in ours.items():
        processor = SubstringLogitsProcessor(index, prompt_length=1, eos_token_id=end)
        if not torch.equal(*((made(ids, scores) == 0)[:, :end] for made in (processor, mask))):
            raise AssertionError(f"{memory} and SEAL allow other tokens after n-grams of {depth}")
        parents = ranges_of_many(index, before)
        known = dict(zip(before, parents, strict=True)) if depth > 1 else {}
        masks[memory] = partial(_step, processor, known, ids, scores)
        indexes[memory] = partial(_index_step, index, parents, depth, last)
    masks[PEER] = partial(mask, ids, scores)
    indexes[PEER] = partial(_their_step, theirs, beams)
    return masks, indexes


def _index_step(index: Any, parents: np.ndarray, depth: int, last: np.ndarray) -> Any:
    return index.next_tokens(index.advance(parents, depth - 1, last), depth)


def _step(processor: Any, known: dict[Any, Any], ids: torch.Tensor, scores: torch.Tensor) -> None:
    """One step of a generation: the ranges of the step before are known, those of this one are not."""
    processor._ranges.clear()
    processor._ranges.update(known)
    processor(ids, scores)


def _their_step(index: Any, beams: Sequence[tuple[int, ...]]) -> None:
    """What SEAL's processor asks of its index: ranges from scratch, their parents' counts, continuations."""
    lows, highs = zip(*(index.get_range(list(beam)) for beam in beams), strict=True)
    for beam in beams:
        index.get_count(list(beam[:-1]))
    index.get_distinct_count_multi(list(lows), list(highs))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="size of the corpus, at most")
    parser.add_argument("--skip-model", action="store_true", help="no row of a whole query")
    parser.add_argument("--reference", metavar="DIR", help="a checkout of SEAL with its index built")
    parser.add_argument("--json")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    documents, _, texts, queries = corpus(options.tokens)
    rows = [*size_rows(documents), *build_rows(documents, options.repeats)]
    rows += step_rows(documents, options.repeats)
    rows += mask_rows(documents, options.repeats)
    rows += aggregation_rows(documents, options.repeats)
    if not options.skip_model:
        whole = query_row(texts, queries, options.repeats)
        rows += [whole] if whole else []
    if options.reference:
        rows += reference_rows(options.reference, documents, options.repeats)
    what = "the index and scoring of SEAL beside plain ways, one thread (size rows: bytes for ms)"
    report("seal", what, rows, options.json)


if __name__ == "__main__":
    main()
