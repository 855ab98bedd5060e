"""Beam search over the substrings of a corpus, which keeps everything it scored on the way.

"Autoregressive Search Engines: Generating Substrings as Document Identifiers" (Bevilacqua et al. 2022,
arXiv 2204.10628). A beam may only grow by tokens that the index allows, but its score is the model's own,

    log P(n | q) = sum_i log softmax(logits_i)[n_i]      over the whole vocabulary, nothing renormalised,

so that n-grams of different beams, lengths and queries remain comparable. Every one of the 2B best
expansions of every step is a result: short n-grams are search keys as much as long ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradatim.inference.beam_model import BeamModel
from gradatim.inference.substring_candidates import all_allowed, best_allowed
from gradatim.inference.substring_index import SubstringIndex, check_start, counts, ranges_of


@dataclass(frozen=True)
class Key:
    """An n-gram of the corpus: its tokens, log P(n|q), and how often it occurs after `start`.

    `complete` says that it could not or was not to grow: it has the full length, its documents end there, a
    finishing token or the end of the sequence was chosen.
    """

    tokens: tuple[int, ...]
    log_prob: float
    count: int
    complete: bool = False
    start: tuple[int, ...] = ()

    @property
    def ngram(self) -> tuple[int, ...]:
        """What is looked up in the corpus."""
        return self.start + self.tokens


@dataclass(frozen=True)
class BeamSettings:
    """See `substring_beam_search`, which has the same names and defaults."""

    num_beams: int = 15
    max_new_tokens: int = 10
    min_new_tokens: int = 0
    start: tuple[int, ...] = ()
    finish_with: tuple[int, ...] = ()
    eos_token_id: int | None = None
    always_allow_eos: bool = False
    stop_at_count: int = 0
    length_penalty: float = 0.0
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        for name in ("num_beams", "max_new_tokens", "num_beam_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("min_new_tokens", "stop_at_count", "diversity_penalty", "top_k"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.num_beams % self.num_beam_groups:
            raise ValueError(f"num_beams={self.num_beams} is no multiple of {self.num_beam_groups} groups")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.eos_token_id is None and (self.always_allow_eos or self.stop_at_count):
            raise ValueError("always_allow_eos and stop_at_count need eos_token_id")


@dataclass(frozen=True)
class Decoded:
    """The keys of one query, best first, and the log-probabilities [vocab] of its first token."""

    keys: list[Key]
    first: Float[Tensor, " vocab"]


def substring_beam_search(
    model: Any,
    index: SubstringIndex,
    input_ids: Int[Tensor, "queries length"],
    attention_mask: Tensor | None = None,
    *,
    num_beams: int = 15,
    max_new_tokens: int = 10,
    min_new_tokens: int = 0,
    start: Sequence[int] = (),
    finish_with: Sequence[int] = (),
    eos_token_id: int | None = None,
    always_allow_eos: bool = False,
    stop_at_count: int = 0,
    length_penalty: float = 0.0,
    num_beam_groups: int = 1,
    diversity_penalty: float = 0.0,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    decoder_input_ids: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    return_history: bool = True,
) -> list[list[Key]]:
    """For each query the corpus n-grams that the model finds most probable, best first.

    Args:
        model: a causal or an encoder-decoder model of transformers, in evaluation mode.
        num_beams: B; 2B expansions are scored per step.
        max_new_tokens: longest n-gram. Beams stop earlier where no document goes on.
        start: tokens before the n-gram in the corpus, unseen by the model; `(index.eod,)` begins documents.
        finish_with: a beam that takes one of these tokens is complete (a title's delimiter).
        always_allow_eos, stop_at_count, min_new_tokens: as in `SubstringLogitsProcessor`. The end of the
            sequence competes with tokens, but is no part of a key nor of its score.
        length_penalty: results are ordered by log P / length^penalty; 0 orders by log P.
        num_beam_groups, diversity_penalty: groups choose in turn, and a token costs the penalty for every
            time that earlier groups chose it in this step ("Diverse Beam Search", 2016, arXiv 1610.02424).
        do_sample: draw 2B expansions without replacement in proportion to their probability at
            `temperature`; needs a generator. Scores kept are still the model's own.
        top_k: of the allowed tokens of a beam only the k best; 0: all.
        return_history: False gives complete keys only, at most B.

    Raises ValueError for settings out of range, a start that no document holds, an empty prompt, one too long
    for the model's context, and tokens in the index that the model does not score.
    """
    settings = BeamSettings(
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        start=tuple(start),
        finish_with=tuple(finish_with),
        eos_token_id=eos_token_id,
        always_allow_eos=always_allow_eos,
        stop_at_count=stop_at_count,
        length_penalty=length_penalty,
        num_beam_groups=num_beam_groups,
        diversity_penalty=diversity_penalty,
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
    )
    found = decode(
        model,
        index,
        input_ids,
        attention_mask,
        settings,
        decoder_input_ids=decoder_input_ids,
        generator=generator,
    )
    if return_history:
        return [each.keys for each in found]
    return [[key for key in each.keys if key.complete][:num_beams] for each in found]


def decode(
    model: Any,
    index: SubstringIndex,
    input_ids: Int[Tensor, "queries length"],
    attention_mask: Tensor | None,
    settings: BeamSettings,
    *,
    decoder_input_ids: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> list[Decoded]:
    """`substring_beam_search` with its settings in one piece, and the first step's distribution."""
    if settings.do_sample and generator is None:
        raise ValueError("sampling needs generator=torch.Generator().manual_seed(...)")
    check_start(index, settings.start)
    runner = BeamModel(
        model, input_ids, attention_mask, decoder_input_ids=decoder_input_ids, room=settings.max_new_tokens
    )
    first = log_probs = runner.first()
    queries = len(input_ids)
    beams = _roots(index, settings, queries)
    history: list[dict[tuple[int, ...], Key]] = [{} for _ in range(queries)]
    for length in range(1, settings.max_new_tokens + 1):
        choices = _expansions(index, log_probs, beams, settings, generator)
        for row in choices.ended:
            _complete(history[int(beams.query[row])], beams.tokens[row])
        chosen = _choose(choices, beams, settings, queries)
        ranges = index.advance(beams.ranges[chosen.parent], beams.depth, chosen.token)
        numbers = counts(ranges)
        tokens = np.concatenate([beams.tokens[chosen.parent], chosen.token[:, None]], axis=1)
        final = np.isin(chosen.token, settings.finish_with) | (length == settings.max_new_tokens)
        for i, query in enumerate(chosen.query):
            ngram = tuple(tokens[i].tolist())
            key = Key(ngram, float(chosen.score[i]), int(numbers[i]), bool(final[i]), settings.start)
            history[int(query)][ngram] = key
        kept = np.flatnonzero(chosen.survives & ~final)
        if not len(kept):
            break
        parents = chosen.parent[kept]
        rows = beams.query[parents] if length == 1 else parents  # groups share the row of their prompt
        beams = _Beams(
            chosen.query[kept],
            chosen.group[kept],
            tokens[kept],
            chosen.score[kept],
            ranges[kept],
            beams.depth + 1,
        )
        log_probs = runner.step(torch.from_numpy(rows), torch.from_numpy(chosen.token[kept]))
    return [Decoded(_ordered(found, settings), first[q]) for q, found in enumerate(history)]


@dataclass(frozen=True)
class _Beams:
    """Beams that are still growing, all of one length; a query's beams of a group stand together."""

    query: Int[np.ndarray, " beams"]
    group: Int[np.ndarray, " beams"]
    tokens: Int[np.ndarray, "beams length"]
    score: Float[np.ndarray, " beams"]
    ranges: Int[np.ndarray, "beams shards 2"]
    depth: int


@dataclass(frozen=True)
class _Choices:
    """Possible expansions: beam, token (-1: end the sequence), score, and the score to choose by."""

    row: Int[np.ndarray, " found"]
    token: Int[np.ndarray, " found"]
    score: Float[np.ndarray, " found"]
    by: Float[np.ndarray, " found"]
    ended: Int[np.ndarray, " ended"]  # beams that nothing may follow


@dataclass(frozen=True)
class _Chosen:
    """The expansions of this step that are recorded; those that survive are the next beams."""

    parent: Int[np.ndarray, " chosen"]
    query: Int[np.ndarray, " chosen"]
    group: Int[np.ndarray, " chosen"]
    token: Int[np.ndarray, " chosen"]
    score: Float[np.ndarray, " chosen"]
    survives: np.ndarray


def _roots(index: SubstringIndex, settings: BeamSettings, queries: int) -> _Beams:
    groups = settings.num_beam_groups
    rows = queries * groups
    return _Beams(
        query=np.repeat(np.arange(queries), groups),
        group=np.tile(np.arange(groups), queries),
        tokens=np.empty((rows, 0), dtype=np.int64),
        score=np.zeros(rows),
        ranges=np.repeat(ranges_of(index, settings.start), rows, axis=0),
        depth=len(settings.start),
    )


def _expansions(
    index: SubstringIndex,
    log_probs: Tensor,
    beams: _Beams,
    settings: BeamSettings,
    generator: torch.Generator | None,
) -> _Choices:
    """All that may be chosen: enough for any choice of 2B where nothing is drawn, everything where it is."""
    length = beams.tokens.shape[1]
    if len(log_probs) < len(beams.query):  # the first step: groups share a prompt
        log_probs = log_probs[torch.from_numpy(beams.query).to(log_probs.device)]
    if settings.do_sample and not settings.top_k:
        row, token, value = all_allowed(index, log_probs, beams.ranges, beams.depth)
    else:
        # Penalties move at most B tokens: among the 2B best of a beam are the best of it after penalties.
        width = settings.top_k or 2 * settings.num_beams
        width = width if settings.do_sample else min(width, 2 * settings.num_beams)
        tokens, values = best_allowed(index, log_probs, beams.ranges, beams.depth, width)
        row, at = np.nonzero(tokens >= 0)
        token, value = tokens[row, at], values[row, at]
    stuck = np.ones(len(beams.query), dtype=bool)
    stuck[row] = False
    if settings.stop_at_count and length > max(1, settings.min_new_tokens - 1):
        before = np.concatenate([ranges_of(index, (*settings.start, *t[:-1])) for t in beams.tokens.tolist()])
        specific = counts(before) <= settings.stop_at_count
        keep = ~specific[row]
        row, token, value = row[keep], token[keep], value[keep]
        stuck |= specific
    if settings.always_allow_eos and length >= max(1, settings.min_new_tokens):
        assert settings.eos_token_id is not None
        ends = np.flatnonzero(~stuck)
        row = np.concatenate([row, ends])
        value = np.concatenate([value, log_probs[:, settings.eos_token_id].double().cpu().numpy()[ends]])
        token = np.concatenate([token, np.full(len(ends), -1)])
    score = beams.score[row] + value
    by = score
    if settings.do_sample:
        assert generator is not None
        uniform = torch.rand(len(score), generator=generator, dtype=torch.float64).numpy()
        # The largest of log p + Gumbel noise are a draw without replacement.
        by = score / settings.temperature - np.log(-np.log(uniform.clip(1e-300, 1 - 1e-16)))
    return _Choices(row, token, score, by, np.flatnonzero(stuck))


def _choose(choices: _Choices, beams: _Beams, settings: BeamSettings, queries: int) -> _Chosen:
    """Per query and group the 2b best expansions; the b best that are tokens survive."""
    size = settings.num_beams // settings.num_beam_groups
    query, group = beams.query[choices.row], beams.group[choices.row]
    penalty = np.zeros(len(query))
    picked: list[np.ndarray] = []
    survivors: list[np.ndarray] = []
    for g in range(settings.num_beam_groups):
        mine = np.flatnonzero(group == g)
        by = choices.by[mine] - settings.diversity_penalty * penalty[mine]
        order = mine[np.lexsort((choices.token[mine], choices.row[mine], -by, query[mine]))]
        place = np.arange(len(order)) - np.searchsorted(query[order], query[order])
        order = order[place < 2 * size]
        real = choices.token[order] >= 0
        rank = np.zeros(len(order), dtype=np.int64)
        for q in range(queries):
            of_query = query[order] == q
            rank[of_query] = np.cumsum(real[of_query])
        lives = real & (rank <= size)
        picked.append(order[real])
        survivors.append(lives[real])
        if settings.diversity_penalty and g + 1 < settings.num_beam_groups:
            for q, t in zip(query[order[lives]], choices.token[order[lives]], strict=True):
                penalty[(query == q) & (choices.token == t)] += 1
    order, lives = np.concatenate(picked), np.concatenate(survivors)
    return _Chosen(
        parent=choices.row[order],
        query=query[order],
        group=group[order],
        token=choices.token[order],
        score=choices.score[order],
        survives=lives,
    )


def _complete(history: dict[tuple[int, ...], Key], tokens: np.ndarray) -> None:
    ngram = tuple(tokens.tolist())
    if ngram in history:
        history[ngram] = replace(history[ngram], complete=True)


def _ordered(history: dict[tuple[int, ...], Key], settings: BeamSettings) -> list[Key]:
    def rank(key: Key) -> tuple[float, tuple[int, ...]]:
        return (-key.log_prob / len(key.tokens) ** settings.length_penalty, key.tokens)

    return sorted(history.values(), key=rank)
