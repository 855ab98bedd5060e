"""Whether tasks pull the initial weights the same way: the meta-gradient beside each task's own gradient.

The log of "Navigating High Dimensional Concept Space with Metalearning" (2025, arXiv 2508.01948): with v_t =
∇L_Q(θ_K) of task t and d the meta-gradient in θ, the mean over tasks of cos(d, v_t). First-order
meta-gradients are the mean of v_t: there the alignment says how far the tasks agree. Exact ones also carry
what adaptation makes of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.models.meta_losses import fitted_outputs, task_losses
from gradatim.tasks.few_shot import Tasks

if TYPE_CHECKING:
    from gradatim.models.meta_sgd import MetaSGD


def gradient_alignment(meta: MetaSGD, tasks: Tasks, steps: int | None = None) -> Float[Tensor, " tasks"]:
    """cos(d, v_t) of every task over all adapted weights; 0 where a gradient is zero."""
    with torch.enable_grad():
        adapted = meta.adapt(tasks.xs_s, tasks.ys_s, steps)
        ends = {name: w.detach().requires_grad_() for name, w in adapted.items()}
        outputs = fitted_outputs(meta.loss, meta.predict(ends, tasks.xs_q, tasks.xs_s), tasks.ys_q)
        own = torch.autograd.grad(
            task_losses(meta.loss, outputs, tasks.ys_q).sum(), list(ends.values()), materialize_grads=True
        )
        parameters = dict(meta.module.named_parameters())
        start = [parameters[name] for name in adapted]
        # The mean over tasks of L_Q(θ_K), followed back to θ: through θ_K its gradient is v_t / T.
        pulled = torch.autograd.grad(
            list(adapted.values()), start, [v / len(tasks) for v in own], materialize_grads=True
        )
    every = torch.cat([v.flatten(1) for v in own], dim=1)
    meta_gradient = torch.cat([d.flatten() for d in pulled])
    return torch.nn.functional.cosine_similarity(every, meta_gradient[None], dim=1)
