"""Skip-gram with negative sampling as a torch module, and its training in batches on any device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gradatim.models.text_batches import TextBatches
from gradatim.models.vocabulary import EncodedCorpus, Vocabulary


class SkipGramModule(nn.Module):
    """Input rows w and output rows u; `forward` is the loss of a batch, summed over its pairs.

    The pairs of a centre x with each present word c of its context share the centre's noise words:
    -log sigma(w_c . u_x) - sum over noise n != x of log sigma(-w_c . u_n).
    """

    def __init__(self, W: Float[Tensor, "words dim"], U: Float[Tensor, "words dim"], sparse: bool = True):
        super().__init__()
        self.inputs = nn.Embedding.from_pretrained(W, freeze=False, sparse=sparse)
        self.outputs = nn.Embedding.from_pretrained(U, freeze=False, sparse=sparse)

    def forward(
        self,
        centre: Int[Tensor, " batch"],
        context: Int[Tensor, "batch slots"],
        present: Bool[Tensor, "batch slots"],
        noise: Int[Tensor, "batch negative"],
    ) -> Float[Tensor, ""]:
        rows = self.outputs(torch.cat([centre[:, None], noise], dim=1))
        logits = self.inputs(context) @ rows.transpose(1, 2)  # [batch, slots, 1 + negative]
        weight = torch.cat([torch.ones_like(noise[:, :1]), (noise != centre[:, None]).long()], dim=1)
        sign = torch.ones_like(logits)
        sign[..., 1:] = -1.0
        every = nn.functional.logsigmoid(sign * logits) * weight[:, None]
        return -(every * present[..., None]).sum()


def train_in_torch(
    corpus: EncodedCorpus,
    vocabulary: Vocabulary,
    W: Float[np.ndarray, "words dim"],
    U: Float[np.ndarray, "words dim"],
    window: int,
    negative: int,
    ns_exponent: float,
    sample: float,
    epochs: int,
    lr: float,
    min_lr: float,
    rng: np.random.RandomState,
    device: str,
    batch_size: int,
) -> None:
    """Trains W and U in place by sparse Adam with step `lr` falling linearly to `min_lr`.

    A batch adds up thousands of pairs, which plain steps would turn into far too long ones for frequent
    words; Adam's are as long whatever their number.
    """
    batches = TextBatches(
        corpus, vocabulary, window=window, full_windows=False, negative=negative, ns_exponent=ns_exponent,
        sample=sample, epochs=epochs, batch_size=batch_size, seed=int(rng.randint(2**31)), device=device,
    )  # fmt: skip
    module = SkipGramModule(torch.from_numpy(W.copy()), torch.from_numpy(U.copy())).to(device)
    optimizer = torch.optim.SparseAdam(list(module.parameters()), lr=lr)
    for batch in batches:
        set_lr(optimizer, lr + (min_lr - lr) * batch.done)
        optimizer.zero_grad()
        module(batch.centre, batch.context, batch.present, batch.noise).backward()
        optimizer.step()
    W[:] = module.inputs.weight.detach().cpu().numpy()
    U[:] = module.outputs.weight.detach().cpu().numpy()
    if not (np.isfinite(W).all() and np.isfinite(U).all()):
        raise FloatingPointError(f"training diverged: lower lr={lr:g}")


def set_lr(optimizer: Any, lr: float) -> None:
    """Gives every parameter group the step `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
