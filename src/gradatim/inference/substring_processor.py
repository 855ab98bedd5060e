"""Constrained decoding with any `generate`: only tokens that go on with a substring of the corpus.

"Autoregressive Search Engines: Generating Substrings as Document Identifiers" (Bevilacqua et al. 2022,
arXiv 2204.10628).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from gradatim.inference.substring_index import SubstringIndex, check_start, counts, ranges_of_many

_REMEMBERED = 65_536


class SubstringLogitsProcessor(LogitsProcessor):
    """Sets to -inf every token that would make the generated tokens no substring of a document.

    A row's generated tokens are those after the first `prompt_length` (for an encoder-decoder: after the
    start tokens of the decoder, mostly 1), with `start` in front of them for the look-up only: `start=(eod,)`
    makes them begin a document. Where nothing can follow, the end-of-sequence token alone is allowed.

    Rows are looked up by their tokens, not by their place, so that beams may be reordered, repeated or
    dropped between calls. Scores keep their dtype and device; nothing is renormalised.

    Beam search of transformers fills beams that it cannot fill with sequences of score -inf (only where the
    corpus offers fewer than two continuations per beam): drop those. `substring_beam_search` has none.

    Args:
        index: a `TokenIndex` or `ShardedTokenIndex` over the model's token ids.
        prompt_length: one number, or one per prompt (rows of several beams per prompt are recognised).
        start: tokens that stand before the generated ones in the corpus.
        eos_token_id: what ends a sequence; needed where a document's end can be reached.
        always_allow_eos: end anywhere (after `min_new_tokens`).
        stop_at_count: end as soon as what was generated without its last token occurs at most so often
            (0: never): longer is no more specific.
        min_new_tokens: no end before that, except where nothing else can follow.

    Raises ValueError for negative numbers and a start that no document holds; when called, for
    prompt_length > length of the input, as many prompt lengths as fit no number of rows, scores narrower than
    the index's token ids, and a dead end without `eos_token_id`.
    """

    def __init__(
        self,
        index: SubstringIndex,
        *,
        prompt_length: int | Tensor,
        start: Sequence[int] = (),
        eos_token_id: int | None = None,
        always_allow_eos: bool = False,
        stop_at_count: int = 0,
        min_new_tokens: int = 0,
    ) -> None:
        lengths = torch.as_tensor(prompt_length).reshape(-1).tolist()
        if not lengths or min(lengths) < 0 or stop_at_count < 0 or min_new_tokens < 0:
            raise ValueError(
                f"prompt_length, stop_at_count and min_new_tokens must be at least 0, got {lengths}, "
                f"{stop_at_count} and {min_new_tokens}"
            )
        if eos_token_id is None and (always_allow_eos or stop_at_count):
            raise ValueError("always_allow_eos and stop_at_count need eos_token_id")
        check_start(index, start)
        self.index = index
        self.start = tuple(int(token) for token in start)
        self.eos_token_id = eos_token_id
        self.always_allow_eos = always_allow_eos
        self.stop_at_count = stop_at_count
        self.min_new_tokens = min_new_tokens
        self._lengths = [int(length) for length in lengths]
        self._ranges: OrderedDict[tuple[int, ...], Int[np.ndarray, "shards 2"]] = OrderedDict()

    def __call__(
        self, input_ids: Int[Tensor, "rows length"], scores: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows vocab"]:
        generated = self._generated(input_ids)
        ranges = self._look_up([self.start + row for row in generated])
        depth = np.array([len(self.start) + len(row) for row in generated], dtype=np.int64)
        offsets, tokens, _ = self.index.next_tokens(ranges, depth)
        found = np.diff(offsets)
        ends = found == 0
        if self.eos_token_id is None and ends.any():
            row = list(generated[int(np.argmax(ends))])
            raise ValueError(f"nothing follows {row[-8:]} in the corpus; give eos_token_id to end there")
        rows = np.repeat(np.arange(len(generated)), found)
        if self.stop_at_count:
            ends |= self._specific_enough(generated)
            keep = ~ends[rows]
            rows, tokens = rows[keep], tokens[keep]
        if self.always_allow_eos:
            ends |= np.array([len(row) >= self.min_new_tokens for row in generated])
        if len(tokens) and tokens.max() >= scores.shape[1]:
            raise ValueError(
                f"the index holds token id {tokens.max()}, but the model scores {scores.shape[1]} tokens; "
                "index and model need the same tokenizer"
            )
        if self.eos_token_id is not None:
            last = np.flatnonzero(ends)
            rows = np.concatenate([rows, last])
            tokens = np.concatenate([tokens, np.full(len(last), self.eos_token_id)])
        allowed = _on(rows, scores), _on(tokens, scores)
        masked = torch.full_like(scores, -torch.inf)
        masked[allowed] = scores[allowed]
        return masked

    def _generated(self, input_ids: Tensor) -> list[tuple[int, ...]]:
        rows, width = input_ids.shape
        if max(self._lengths) > width:
            raise ValueError(f"prompt_length={max(self._lengths)}, but the input has {width} tokens")
        if rows % len(self._lengths):
            raise ValueError(f"{len(self._lengths)} prompt lengths do not fit {rows} rows")
        repeats = rows // len(self._lengths)
        lengths = [length for length in self._lengths for _ in range(repeats)]
        return [tuple(row[n:]) for row, n in zip(input_ids.tolist(), lengths, strict=True)]

    def _look_up(self, wanted: list[tuple[int, ...]]) -> Int[np.ndarray, "rows shards 2"]:
        """Ranges of n-grams: a known parent's range with one token more, all rows in one call."""
        distinct = list(dict.fromkeys(wanted))
        new = [key for key in distinct if key and key not in self._ranges]
        strangers = [key[:-1] for key in new if key[:-1] and key[:-1] not in self._ranges]
        if strangers:
            for key, ranges in zip(strangers, ranges_of_many(self.index, strangers), strict=True):
                self._remember(key, ranges)
        if new:
            parents = [self._parent(key[:-1]) for key in new]
            depth = np.array([len(key) - 1 for key in new], dtype=np.int64)
            last = np.array([key[-1] for key in new], dtype=np.int64)
            for key, ranges in zip(new, self.index.advance(np.stack(parents), depth, last), strict=True):
                self._remember(key, ranges)
        return np.stack([self._parent(key) for key in wanted])

    def _parent(self, key: tuple[int, ...]) -> Int[np.ndarray, "shards 2"]:
        known = self._ranges.get(key)
        if known is None:
            ranges = self.index.roots(1)
            for depth, token in enumerate(key):
                ranges = self.index.advance(ranges, depth, np.array([token], dtype=np.int64))
            known = ranges[0]
            self._remember(key, known)
        return known

    def _remember(self, key: tuple[int, ...], ranges: Int[np.ndarray, "shards 2"]) -> None:
        self._ranges[key] = ranges
        if len(self._ranges) > _REMEMBERED:
            self._ranges.popitem(last=False)

    def _specific_enough(self, generated: list[tuple[int, ...]]) -> np.ndarray:
        before = self._look_up([self.start + row[:-1] for row in generated])
        long = np.array([len(row) > max(1, self.min_new_tokens - 1) for row in generated])
        return long & (counts(before) <= self.stop_at_count)


def _on(numbers: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(like.device)
