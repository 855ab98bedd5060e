"""The schedule study's language model: a two-layer character transformer, trained with the parts themselves.

The text is Python's own help topics (`pydoc_data.topics`), as bytes, one pass of random windows; the last
tenth is for testing.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradatim.bench import Outcome, Scale, tuning_seeds
from gradatim.optim.recorder import GradNormRecorder
from gradatim.optim.refined_lr import RefinedLR
from gradatim.optim.schedules import TableLR
from gradatim.optim.shapes import shape
from gradatim.optim.traces import GradNormTrace

CONTEXT, BATCH, WIDTH, LAYERS = 64, 16, 64, 2
RATES = tuple(10.0 ** (k / 4) for k in (-10, -9, -8))


class CharTransformer(nn.Module):
    """Pre-norm causal transformer over bytes."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, WIDTH)
        self.position = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, 4, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, CONTEXT, vocabulary] for tokens [batch, CONTEXT]."""
        h = self.token(tokens) + self.position
        for block in self.blocks:
            h = block(h, src_mask=self.mask, is_causal=True)
        return self.head(self.norm(h))


def text_outcome(kind: str, seed: int, scale: Scale) -> Outcome:
    """Test loss of one seed at the rate that tuning seeds chose."""
    steps, tuning = int(scale["text_steps"]), int(scale["text_tuning_seeds"])
    rate = best_rate(kind, steps, tuning)
    loss, _ = train(kind, seed, rate, steps, _trace(kind, seed, steps, tuning))
    return Outcome({"loss": loss, "log10_rate": math.log10(rate)})


@lru_cache(maxsize=16)
def best_rate(kind: str, steps: int, tuning: int) -> float:
    """The base rate with the least mean test loss on the tuning seeds."""

    def mean_loss(rate: float) -> float:
        losses = [
            train(kind, s, rate, steps, _trace(kind, s, steps, tuning))[0] for s in tuning_seeds(tuning)
        ]
        return float(np.mean(losses))

    return min(RATES, key=mean_loss)


@lru_cache(maxsize=64)
def baseline_trace(seed: int, steps: int, tuning: int) -> GradNormTrace:
    """L1 norms of the linear-decay run at its own best rate."""
    return train("linear", seed, best_rate("linear", steps, tuning), steps, None)[1]


def _trace(kind: str, seed: int, steps: int, tuning: int) -> GradNormTrace | None:
    return baseline_trace(seed, steps, tuning) if kind == "refined" else None


def train(
    kind: str, seed: int, rate: float, steps: int, trace: GradNormTrace | None
) -> tuple[float, GradNormTrace]:
    """One run: test loss (nats per byte) and the L1 norms of its gradients."""
    data, vocabulary = corpus()
    cut = len(data) * 9 // 10
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        # Modules draw their first weights from the global generator; it is left as it was found.
        torch.manual_seed(seed)
        model = CharTransformer(vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95))
    scheduler = TableLR(optimizer, shape(kind, steps)) if trace is None else RefinedLR(optimizer, trace)
    with GradNormRecorder(optimizer, norm=1) as recorder:
        for _ in range(steps):
            loss = _loss(model, _windows(data[:cut], BATCH, generator))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    held_out = _windows(data[cut:], 256, torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float(_loss(model, held_out)), recorder.trace(batch_size=BATCH)


def _loss(model: nn.Module, windows: Tensor) -> Tensor:
    logits = model(windows[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def _windows(data: Tensor, count: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(data) - CONTEXT - 1, (count, 1), generator=generator)
    return data[starts + torch.arange(CONTEXT + 1)]


@lru_cache(maxsize=1)
def corpus() -> tuple[Tensor, int]:
    """The text as indices of the bytes that occur in it, and how many there are."""
    from pydoc_data import topics

    table: dict[str, Any] = topics.topics
    raw = np.frombuffer("\n".join(table[k] for k in sorted(table)).encode(), dtype=np.uint8)
    present, data = np.unique(raw, return_inverse=True)
    return torch.from_numpy(data.astype(np.int64)), len(present)
