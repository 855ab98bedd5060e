"""The disambiguated skip-gram as a torch module, and its training in batches on any device."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gradatim.models.sense_training import GUMBEL, HARD, SensePlan, SenseWeights, log_expected
from gradatim.models.skip_gram_torch import set_lr
from gradatim.models.text_batches import TextBatches
from gradatim.models.vocabulary import EncodedCorpus, Vocabulary


class SenseModule(nn.Module):
    """Senses E, outputs O with bias, classifiers A, a; `forward` is the loss of a batch, summed over its
    pairs.

    The formulas are those of `SenseSkipGram`; a pair adds lambda H(softmax(l)) of its centre.
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        sampled_softmax: bool = False,
        expected: Float[Tensor, " words"] | None = None,
        sparse: bool = True,
    ) -> None:
        super().__init__()
        self.shape = tuple(weights["senses"].shape[1:])
        self.senses = nn.Embedding.from_pretrained(weights["senses"].flatten(1), freeze=False, sparse=sparse)
        self.outputs = nn.Embedding.from_pretrained(weights["outputs"], freeze=False, sparse=sparse)
        self.output_bias = nn.Embedding.from_pretrained(
            weights["output_bias"][:, None], freeze=False, sparse=sparse
        )
        self.classifiers = nn.Embedding.from_pretrained(
            weights["classifiers"].flatten(1), freeze=False, sparse=sparse
        )
        self.classifier_bias = nn.Embedding.from_pretrained(
            weights["classifier_bias"], freeze=False, sparse=sparse
        )
        self.sampled_softmax = sampled_softmax
        self.expected: Tensor | None
        self.register_buffer("expected", expected)

    def logits(
        self,
        centre: Int[Tensor, " batch"],
        context: Int[Tensor, "batch slots"],
        present: Bool[Tensor, "batch slots"],
    ) -> Float[Tensor, "batch senses"]:
        """A ctx + a, ctx without gradient."""
        with torch.no_grad():
            mask = present[..., None].to(self.outputs.weight.dtype)
            ctx = (self.outputs(context) * mask).sum(1) / mask.sum(1).clamp(min=1)
        owner = centre if len(self.classifiers.weight) > 1 else torch.zeros_like(centre)
        A = self.classifiers(owner).unflatten(1, self.shape)
        return (A @ ctx[..., None]).squeeze(-1) + self.classifier_bias(owner)

    def forward(
        self,
        centre: Int[Tensor, " batch"],
        context: Int[Tensor, "batch slots"],
        present: Bool[Tensor, "batch slots"],
        noise: Int[Tensor, "batch negative"],
        temperature: float,
        entropy: float,
        gumbel: Float[Tensor, "batch slots senses"] | None = None,
    ) -> Float[Tensor, ""]:
        logits = self.logits(centre, context, present)
        noisy = logits[:, None] if gumbel is None else logits[:, None] + gumbel
        pi = torch.softmax(noisy / temperature, dim=-1)
        v = pi @ self.senses(centre).unflatten(1, self.shape)  # [batch, slots or 1, dim]
        v = v.expand(-1, context.shape[1], -1)
        words = torch.cat([context[..., None], noise[:, None].expand(-1, context.shape[1], -1)], dim=2)
        scores = (self.outputs(words) @ v[..., None]).squeeze(-1) + self.output_bias(words).squeeze(-1)
        repeated = words[..., 1:] == words[..., :1]
        if self.sampled_softmax:
            assert self.expected is not None
            scores = scores - self.expected[words]
            gone = torch.cat([torch.zeros_like(repeated[..., :1]), repeated], dim=2)
            nll = -torch.log_softmax(scores.masked_fill(gone, -1e30), dim=2)[..., 0]
        else:
            negative = nn.functional.logsigmoid(-scores[..., 1:]).masked_fill(repeated, 0.0).sum(-1)
            nll = -nn.functional.logsigmoid(scores[..., 0]) - negative
        plain = torch.log_softmax(logits, dim=1)
        spread = -(plain.exp() * plain).sum(dim=1, keepdim=True)
        return ((nll + entropy * spread) * present).sum()


def train_in_torch(
    corpus: EncodedCorpus,
    vocabulary: Vocabulary,
    plan: SensePlan,
    weights: SenseWeights,
    rng: np.random.RandomState,
    device: str,
    batch_size: int,
) -> SenseWeights:
    """Both stages by sparse Adam, every step `lr`, falling linearly within a stage.

    Raises ValueError for the cluster assignment, FloatingPointError when training diverges.
    """
    if plan.assignment == HARD:
        raise ValueError('assignment="hard" is trained by the compiled kernels: device=None')
    expected = torch.from_numpy(log_expected(vocabulary, plan))
    for stage, (epochs, assignment, entropy, heat, step) in enumerate(plan.stages()):
        if stage or not plan.warm_epochs:
            weights = weights.with_classifiers(len(vocabulary), plan.own_classifiers)
        batches = TextBatches(
            corpus, vocabulary, window=plan.window, full_windows=plan.full_windows, negative=plan.negative,
            ns_exponent=plan.ns_exponent, sample=plan.sample, epochs=epochs, batch_size=batch_size,
            seed=int(rng.randint(2**31)), device=device,
        )  # fmt: skip
        tensors = {n: torch.from_numpy(a.copy()) for n, a in weights.arrays().items() if n != "alive"}
        module = SenseModule(tensors, plan.sampled_softmax, expected).to(device)
        # A classifier step of 0 means that the stage leaves it alone; Adam knows no other steps than its own.
        moved = [p for n, p in module.named_parameters() if step > 0 or not n.startswith("classifier")]
        optimizer = torch.optim.SparseAdam(moved, lr=plan.lr)
        for batch in batches:
            set_lr(optimizer, plan.lr * (1.0 - (1.0 - plan.end_share) * batch.done))
            cooled = min(1.0, batch.done * epochs)
            gumbel = None
            if assignment == GUMBEL:
                drawn = torch.rand(
                    (*batch.context.shape, plan.senses), generator=batches.generator, device=batches.device
                )
                # A float32 draw can round to 0 or 1, where the noise would be infinite.
                gumbel = -torch.log(-torch.log(drawn.clamp(1e-6, 1 - 1e-6)))
            optimizer.zero_grad()
            module(
                batch.centre, batch.context, batch.present, batch.noise,
                heat[0] + (heat[1] - heat[0]) * cooled, entropy, gumbel,
            ).backward()  # fmt: skip
            optimizer.step()
        for name, array in weights.arrays().items():
            if name != "alive":
                array[:] = getattr(module, name).weight.detach().cpu().numpy().reshape(array.shape)
        if not all(np.isfinite(a).all() for a in weights.arrays().values()):
            raise FloatingPointError(f"training diverged: lower lr={plan.lr:g}")
    return weights
