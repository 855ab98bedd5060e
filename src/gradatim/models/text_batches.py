"""Batches of words with their surroundings and noise words, drawn on any torch device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradatim.models.vocabulary import EncodedCorpus, Vocabulary


@dataclass(frozen=True)
class TextBatch:
    """Words `centre` of documents `doc`; the `context` words around, where `present`; `noise` per centre.

    `done` is the share of the training that lies behind the batch.
    """

    doc: Int[Tensor, " batch"]
    centre: Int[Tensor, " batch"]
    context: Int[Tensor, "batch slots"]
    present: Bool[Tensor, "batch slots"]
    noise: Int[Tensor, "batch negative"]
    done: float


class TextBatches:
    """Every epoch sub-samples frequent words anew and visits the words that stay in a random order.

    Slot j of a context is the word at offset -window ... -1, 1 ... window. `full_windows` takes every slot,
    else 1 to `window` words on each side, drawn for each centre.
    """

    def __init__(
        self,
        corpus: EncodedCorpus,
        vocabulary: Vocabulary,
        *,
        window: int,
        full_windows: bool,
        negative: int,
        ns_exponent: float | None,
        sample: float,
        epochs: int,
        batch_size: int,
        seed: int,
        device: str,
    ) -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.ids = torch.from_numpy(corpus.ids.astype(np.int64)).to(self.device)
        sizes = np.diff(corpus.offsets)
        self.docs = torch.from_numpy(np.repeat(np.arange(len(corpus)), sizes)).to(self.device)
        keep = vocabulary.keep_thresholds(float(sample)).astype(np.float64) / (2**32 - 1)
        self.keep = torch.from_numpy(keep).float().to(self.device)
        self.share = torch.from_numpy(vocabulary.noise_weights(ns_exponent)).float().to(self.device)
        self.window, self.full_windows, self.negative = window, full_windows, negative
        self.epochs, self.batch_size = epochs, batch_size

    def __iter__(self) -> Iterator[TextBatch]:
        offsets = [o for o in range(-self.window, self.window + 1) if o]
        steps = torch.tensor(offsets, device=self.device)
        for epoch in range(self.epochs):
            kept = (
                torch.rand(len(self.ids), generator=self.generator, device=self.device) <= self.keep[self.ids]
            )
            ids, docs = self.ids[kept], self.docs[kept]
            order = torch.randperm(len(ids), generator=self.generator, device=self.device)
            for begin in range(0, len(ids), self.batch_size):
                at = order[begin : begin + self.batch_size]
                beside = at[:, None] + steps
                inside = (beside >= 0) & (beside < len(ids))
                beside = beside.clamp(0, len(ids) - 1)
                present = inside & (docs[beside] == docs[at][:, None])
                if not self.full_windows:
                    reach = self._integers(1, self.window + 1, (len(at), 1))
                    present &= steps.abs() <= reach
                yield TextBatch(
                    doc=docs[at],
                    centre=ids[at],
                    context=ids[beside],
                    present=present,
                    noise=self._noise(len(at)),
                    done=(epoch + begin / max(1, len(ids))) / self.epochs,
                )

    def _integers(self, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)

    def _noise(self, n: int) -> Tensor:
        drawn = torch.multinomial(self.share, n * self.negative, replacement=True, generator=self.generator)
        return drawn.reshape(n, self.negative)


def negative_sampling_nll(
    hidden: Float[Tensor, "*batch dim"],
    rows: Float[Tensor, "*batch outputs dim"],
    bias: Float[Tensor, "*batch outputs"] | None,
    weight: Float[Tensor, "*batch outputs"],
) -> Float[Tensor, ""]:
    """-sum of weight log sigma(+- (hidden . row + bias)): plus for output 0, minus for the noise after it."""
    logits = (hidden.unsqueeze(-2) @ rows.transpose(-1, -2)).squeeze(-2)
    if bias is not None:
        logits = logits + bias
    sign = torch.ones_like(logits)
    sign[..., 1:] = -1.0
    return -(weight * torch.nn.functional.logsigmoid(sign * logits)).sum()
