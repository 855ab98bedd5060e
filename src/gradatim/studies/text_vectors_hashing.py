"""The rival that learned codes are held against: semantic hashing by a deep autoencoder.

R. Salakhutdinov and G. Hinton, "Semantic hashing", International Journal of Approximate Reasoning 50, 2009.
Word counts in, sigmoid layers down to the code, Gaussian noise on the code's pre-activation so that it learns
to be nearly binary, word counts out. Trained end to end by Adam, without the original's pre-training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn


class CountAutoencoder(nn.Module):
    """words - hidden - hidden - bits and back; `code` is the pre-activation of the bits."""

    def __init__(self, words: int, hidden: int, bits: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Linear(words, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, bits)
        )
        self.up = nn.Sequential(
            nn.Linear(bits, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, words),
        )  # fmt: skip

    def code(self, counts: Tensor) -> Tensor:
        return self.down(torch.log1p(counts))

    def loss(self, counts: Tensor, noise: Tensor) -> Tensor:
        """Negative log likelihood of the words under the softmax of what comes out, per document."""
        logits = self.up(torch.sigmoid(self.code(counts) + noise))
        return -(counts * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()


def autoencoder_codes(
    queries: list[list[str]], pool: list[list[str]], bits: int, recipe: Mapping[str, Any], seed: int
) -> tuple[UInt8[np.ndarray, "queries bytes"], UInt8[np.ndarray, "docs bytes"]]:
    """Codes [pre-activation > its median over the pool] of queries and pool, trained on the pool.

    The recipe names `words`, `hidden`, `lr`, `epochs` and `noise`.
    """
    frequency = Counter(word for document in pool for word in document)
    index = {word: i for i, (word, _) in enumerate(frequency.most_common(int(recipe["words"])))}
    counts = [torch.from_numpy(_counts(documents, index)) for documents in (queries, pool)]
    torch.manual_seed(seed)
    model = CountAutoencoder(len(index), int(recipe["hidden"]), bits)
    optimizer = torch.optim.Adam(model.parameters(), lr=float(recipe["lr"]))
    for _ in range(int(recipe["epochs"])):
        for rows in torch.randperm(len(pool)).split(128):
            noise = float(recipe["noise"]) * torch.randn(len(rows), bits)
            optimizer.zero_grad()
            model.loss(counts[1][rows], noise).backward()
            optimizer.step()
    with torch.no_grad():
        asked, stored = (model.code(c).numpy() for c in counts)
    middle = np.median(stored, axis=0)
    return np.packbits(asked > middle, axis=1), np.packbits(stored > middle, axis=1)


def _counts(documents: list[list[str]], index: dict[str, int]) -> np.ndarray:
    found = np.zeros((len(documents), len(index)), np.float32)
    for i, document in enumerate(documents):
        for word in document:
            if word in index:
                found[i, index[word]] += 1
    return found
