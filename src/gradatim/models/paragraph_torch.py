"""Paragraph Vector as a torch module, DBOW and DM, real and binary, and its training in batches."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gradatim.models.paragraph_training import COMBINES, ROUNDINGS, ParagraphPlan, ParagraphWeights
from gradatim.models.skip_gram_torch import set_lr
from gradatim.models.text_batches import TextBatches, negative_sampling_nll
from gradatim.models.vocabulary import EncodedCorpus, Vocabulary


def rounded_sigmoid(z: Float[Tensor, "*batch bits"]) -> Float[Tensor, "*batch bits"]:
    """[z > 0] forward; backward the gradient of sigma(z), as if rounding were the identity."""
    p = torch.sigmoid(z)
    return p + ((z > 0).to(p.dtype) - p).detach()


class ParagraphModule(nn.Module):
    """Document vectors and all they share; `forward` is the loss of a batch of words, summed.

    The last column of `outputs` in use is the bias. As in word2vec, a mean passes its whole gradient to each
    of its vectors.
    """

    def __init__(
        self,
        plan: ParagraphPlan,
        documents: Float[Tensor, "docs dim"],
        weights: dict[str, Tensor],
        sparse: bool = True,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.documents = nn.Embedding.from_pretrained(documents, freeze=False, sparse=sparse)
        self.outputs = nn.Embedding.from_pretrained(weights["outputs"], freeze=False, sparse=sparse)
        self.words = nn.Embedding.from_pretrained(weights["words"], freeze=False, sparse=sparse)
        self.projection = nn.Parameter(weights["projection"])
        self.projection_bias = nn.Parameter(weights["projection_bias"])
        self.mixing = nn.Parameter(weights["mixing"])

    def hidden(
        self, d: Float[Tensor, "batch dim"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch size"]:
        """h from d: see `ParagraphVector`."""
        plan = self.plan
        z = d if plan.real_dim is None else d @ self.projection.T + self.projection_bias
        if plan.how == ROUNDINGS["noise"]:
            noise = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
            z = z + plan.noise * noise
        h = z if plan.how == 0 else torch.sigmoid(z)
        if plan.how == ROUNDINGS["straight_through"]:
            h = rounded_sigmoid(z)
        if self.training and plan.dropout > 0:
            kept = torch.rand(h.shape, generator=generator, device=h.device) >= plan.dropout
            h = h * kept / (1.0 - plan.dropout)
        return h

    def forward(
        self,
        doc: Int[Tensor, " batch"],
        centre: Int[Tensor, " batch"],
        context: Int[Tensor, "batch slots"],
        present: Bool[Tensor, "batch slots"],
        noise: Int[Tensor, "batch negative"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        h = self.hidden(self.documents(doc), generator)
        x = self._joined(h, context, present) if self.plan.dm else h
        rows = self.outputs(torch.cat([centre[:, None], noise], dim=1))
        width = self.plan.hidden
        ones = torch.ones_like(rows[:, :1, 0])
        weight = torch.cat([ones, (noise != centre[:, None]).to(rows.dtype)], dim=1)
        return negative_sampling_nll(x, rows[..., :width], rows[..., width], weight)

    def _joined(self, h: Tensor, context: Tensor, present: Tensor) -> Tensor:
        around = self.words(context) * present[..., None].to(h.dtype)
        if self.plan.combine == COMBINES["ordered"]:
            return torch.cat([h, around.flatten(1)], dim=1)
        count = present.sum(dim=1, keepdim=True).to(h.dtype)
        total = around.sum(dim=1)
        if self.plan.combine == COMBINES["concat"]:
            return torch.cat([h, _whole_gradient(total, count.clamp(min=1))], dim=1)
        if self.plan.how == 0:
            return _whole_gradient(h + total, count + 1)
        return h @ self.mixing.T + _whole_gradient(total, count.clamp(min=1))


def _whole_gradient(total: Tensor, count: Tensor) -> Tensor:
    """total / count, whose gradient with respect to every vector of the sum is not divided by count."""
    return total + (total / count - total).detach()


def train_in_torch(
    corpus: EncodedCorpus,
    vocabulary: Vocabulary,
    plan: ParagraphPlan,
    weights: ParagraphWeights,
    documents: Float[np.ndarray, "docs dim"],
    sample: float,
    ns_exponent: float,
    rng: np.random.RandomState,
    device: str,
    batch_size: int,
) -> None:
    """Trains documents and weights in place by (sparse) Adam, every step `lr`, falling as the kernels' do.

    Noise words are per word, not shared. Raises FloatingPointError when training diverges.
    """
    batches = TextBatches(
        corpus, vocabulary, window=plan.window if plan.dm else 1,
        full_windows=not plan.dm or plan.combine == COMBINES["ordered"], negative=plan.negative,
        ns_exponent=ns_exponent, sample=sample, epochs=plan.epochs, batch_size=batch_size,
        seed=int(rng.randint(2**31)), device=device,
    )  # fmt: skip
    tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.arrays().items()}
    module = ParagraphModule(plan, torch.from_numpy(documents.copy()), tensors).to(device)
    rows = [e.weight for e in (module.documents, module.outputs, *([module.words] if plan.dm else []))]
    dense = [p for p in (module.projection, module.projection_bias, module.mixing) if p.numel()]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.SparseAdam(rows, lr=plan.lr)]
    if dense:
        optimizers.append(torch.optim.Adam(dense, lr=plan.lr))
    for batch in batches:
        for optimizer in optimizers:
            set_lr(optimizer, plan.lr * (1.0 - (1.0 - plan.end_share) * batch.done))
            optimizer.zero_grad()
        module(
            batch.doc, batch.centre, batch.context, batch.present, batch.noise, batches.generator
        ).backward()
        for optimizer in optimizers:
            optimizer.step()
    documents[:] = module.documents.weight.detach().cpu().numpy()
    state = {name: tensor.detach().cpu().numpy() for name, tensor in _tensors(module).items()}
    for name, array in weights.arrays().items():
        array[:] = state[name]
    # The padding columns stand for no input; Adam leaves them at zero, as their gradient is.
    if not all(np.isfinite(a).all() for a in (documents, *weights.arrays().values())):
        raise FloatingPointError(f"training diverged: lower lr={plan.lr:g}")


def _tensors(module: ParagraphModule) -> dict[str, Tensor]:
    return {
        "outputs": module.outputs.weight,
        "words": module.words.weight,
        "projection": module.projection,
        "projection_bias": module.projection_bias,
        "mixing": module.mixing,
    }
