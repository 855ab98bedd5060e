"""Texts to token ids, with the one cleaning that corpus, queries and generation have to share."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

_BATCH = 1024


def clean(text: str) -> str:
    """NFC, runs of white space as one blank, and one blank in front.

    Byte-pair tokenizers give " word" and "word" different ids; with the blank in front the first word of a
    text gets the ids that it has inside one. Half a surrogate pair, which no tokenizer takes, is replaced.
    """
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return " " + re.sub(r"\s+", " ", unicodedata.normalize("NFC", whole)).strip()


def token_lists(texts: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of cleaned texts, without special tokens.

    `tokenizer` is a Hugging Face tokenizer (transformers or tokenizers), or any function from a text to ids.
    Raises TypeError for anything else.
    """
    stream = iter(texts)
    while batch := [clean(text) for text in islice(stream, _BATCH)]:
        yield from _encode(batch, tokenizer)


def token_ids(text: str, tokenizer: Any) -> list[int]:
    """Token ids of one cleaned text."""
    return next(token_lists([text], tokenizer))


def text_of(tokens: Iterable[int], tokenizer: Any) -> str:
    """The text of token ids; ids separated by blanks where the tokenizer cannot decode."""
    ids = [int(token) for token in tokens]
    if hasattr(tokenizer, "decode"):
        return str(tokenizer.decode(ids))
    return " ".join(map(str, ids))


def vocabulary_size(tokenizer: Any) -> int | None:
    """Number of ids of a tokenizer, added ones included; None for a plain function."""
    if hasattr(tokenizer, "get_vocab_size"):
        return int(tokenizer.get_vocab_size())
    if hasattr(tokenizer, "get_vocab"):
        return max(tokenizer.get_vocab().values()) + 1
    return None


def _encode(batch: list[str], tokenizer: Any) -> list[list[int]]:
    if hasattr(tokenizer, "encode_batch"):
        return [list(found.ids) for found in tokenizer.encode_batch(batch, add_special_tokens=False)]
    if hasattr(tokenizer, "get_vocab"):
        # Long texts are meant to be long here: no advice on the model's context.
        return list(tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"])
    if callable(tokenizer):
        return [list(tokenizer(text)) for text in batch]
    raise TypeError(f"{type(tokenizer).__name__} is no tokenizer and no function from a text to token ids")
