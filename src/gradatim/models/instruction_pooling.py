"""Pooling for texts that begin with an instruction: the last token, or the mean of what follows the prompt.

A sentence-transformers module. A row's vector depends on that row alone: tokens are counted from the row's
first attended one, so padding on either side and the width of the batch change nothing.

    lasttoken   the hidden state of the last attended token (a causal decoder's [EOS] has read the whole text)
    mean        the mean over attended tokens after the first `prompt_length` of the row

Source: LG-ANNA-Embedding, 2025, arXiv 2506.07438 (the last token of a decoder).
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from sentence_transformers.base.modules.module import Module
from torch import Tensor

PoolingMode = Literal["lasttoken", "mean"]


class InstructionPooling(Module):
    """Token vectors to one vector per text.

    Args:
        embedding_dimension: width of the token vectors.
        pooling_mode: "lasttoken" for causal decoders, "mean" for encoders.
        include_prompt: "mean" also over the prompt's tokens. Off, as in training: a mean over an instruction
            of 20 tokens and a query of 8 is mostly the instruction.

    `prompt_length` in the features is one number for the batch (`encode(prompt=...)`) or one per row
    (`InContextCollator`). Raises ValueError for an unknown mode, a prompt length per row of another size, and
    a row of which nothing but its prompt is left.
    """

    config_keys = ["embedding_dimension", "pooling_mode", "include_prompt"]  # noqa: RUF012  (read by the base)

    def __init__(
        self, embedding_dimension: int, pooling_mode: str = "lasttoken", include_prompt: bool = False
    ) -> None:
        super().__init__()
        if pooling_mode not in get_args(PoolingMode):
            raise ValueError(f"pooling_mode={pooling_mode!r} is unknown; choose lasttoken or mean")
        self.embedding_dimension = embedding_dimension
        self.pooling_mode = pooling_mode
        self.include_prompt = include_prompt

    def forward(self, features: MutableMapping[str, Any], **kwargs: Any) -> Any:
        """Adds `sentence_embedding` [batch, dim] to the features."""
        tokens = features["token_embeddings"]
        attended = features["attention_mask"].bool()
        if self.pooling_mode == "lasttoken":
            features["sentence_embedding"] = last_token(tokens, attended)
            return features
        skip = None if self.include_prompt else features.get("prompt_length")
        features["sentence_embedding"] = mean_after(tokens, attended, self._lengths(skip, tokens))
        return features

    def _lengths(self, given: Any, tokens: Tensor) -> Int[Tensor, " batch"]:
        lengths = torch.as_tensor(0 if given is None else given, device=tokens.device).long().reshape(-1)
        if len(lengths) not in (1, len(tokens)):
            raise ValueError(
                f"prompt_length has {len(lengths)} entries for a batch of {len(tokens)}; give 1 or each"
            )
        return lengths.expand(len(tokens))

    def get_embedding_dimension(self) -> int:
        """The width of the result."""
        return self.embedding_dimension

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Writes the configuration; there are no weights."""
        self.save_config(output_path)


def last_token(
    tokens: Float[Tensor, "batch length dim"], attended: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch dim"]:
    """Each row's last attended token, whichever side is padded. A row without any raises ValueError."""
    _check_rows(attended, "no token at all")
    place = torch.arange(attended.shape[1], device=attended.device)
    last = place.masked_fill(~attended, -1).amax(dim=1)
    return tokens[torch.arange(len(tokens), device=tokens.device), last]


def mean_after(
    tokens: Float[Tensor, "batch length dim"],
    attended: Bool[Tensor, "batch length"],
    skip: Int[Tensor, " batch"],
) -> Float[Tensor, "batch dim"]:
    """Each row's mean over its attended tokens but the first `skip` of them, summed in at least float32."""
    kept = attended & (attended.long().cumsum(dim=1) > skip[:, None])
    _check_rows(kept, "nothing but the prompt left: shorten the prompt or raise max_seq_length")
    wide = torch.promote_types(tokens.dtype, torch.float32)
    # Padding may hold anything: put zeros there instead of multiplying by zero.
    total = tokens.masked_fill(~kept[:, :, None], 0.0).sum(dim=1, dtype=wide)
    return (total / kept.sum(dim=1, keepdim=True)).to(tokens.dtype)


def _check_rows(kept: Bool[Tensor, "batch length"], what: str) -> None:
    if torch.compiler.is_compiling():
        return
    some = kept.any(dim=1)
    if not bool(some.all()):
        raise ValueError(f"row {int((~some).nonzero()[0])} has {what}")
