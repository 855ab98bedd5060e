"""Learning to learn by gradient descent: Meta-SGD, MAML, first-order MAML, ANIL and Reptile on any module.

Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning" (2017, arXiv 1707.09835);
Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017, arXiv
1703.03400); Raghu et al., "Rapid Learning or Feature Reuse?" (ANIL, 2019, arXiv 1909.09157); Nichol, Achiam
and Schulman, "On First-Order Meta-Learning Algorithms" (Reptile, 2018, arXiv 1803.02999).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from gradatim.models.low_rank_adaptation import AdaptedLayers, adapt_low_rank, linear_chain
from gradatim.models.meta_alignment import gradient_alignment
from gradatim.models.meta_gradients import InnerLoop, descend, path
from gradatim.models.meta_losses import LOSSES, TaskLoss, check_set, fitted_outputs, task_losses
from gradatim.models.meta_training import MetaTraining, fit_meta
from gradatim.models.task_forward import TaskForward
from gradatim.tasks.few_shot import Tasks

LEARN_LR = ("element", "row", "tensor", "none")


class MetaSGD(nn.Module):
    """Initial weights θ and step sizes α from which K steps of gradient descent learn a new task.

        θ_{k+1} = θ_k - α ∇L_S(θ_k),   k = 0 .. K-1;      meta-loss = mean over tasks of L_Q(θ_K)

    All tasks of a meta-batch adapt at once, and the meta-gradient is exact in closed form
    (`gradatim.models.meta_gradients`), so memory does not grow with a graph over the steps.

    Args:
        module: any `nn.Module` that maps one task's inputs [n, ...] to its outputs [n] or [n, m]. Its
            parameters become θ, in place; buffers stay as they are.
        lr: initial α.
        steps: K, in training and, unless told otherwise, at test time.
        first_order: hold the inner gradients constant (no Hessian-vector products).
        learn_lr: α is learned for every weight ("element", the paper), per row of a matrix ("row"), per
            tensor ("tensor"), or not at all ("none": MAML).
        lr_bounds: (low, high) keeps α between them through a sigmoid; None leaves it free, as published: it
            may become negative.
        norm_stats: what a BatchNorm normalises with. "batch": the statistics of the set it is given, so that
            predictions for a query depend on the whole query (transductive; what the public codes do);
            "support": those of the support, for the query too (inductive); "frozen": its running ones, which
            are never updated here.
        inner_params: glob patterns of the parameters that tasks adapt (ANIL: ("head.*",)); the others are
            learned by the meta-gradient alone. Parameters with requires_grad=False take no part.
        loss: "bce", "cross_entropy", "mse", or a function (outputs [n, ...], labels [n, ...]) -> scalar.
        engine: see `gradatim.models.task_forward`; "auto" takes the fastest that fits. "low_rank" writes no
            task's weights out (`gradatim.models.low_rank_adaptation`): for wide layers and few examples, an
            `nn.Sequential` of linear layers and elementwise functions, and rates "row", "tensor" or "none".
        checkpoint: keep every sqrt(K)-th inner state only, and recompute (exact gradients of many steps).

    Works with any `torch.optim` optimizer on `.parameters()`; `param_groups` spares α the weight decay.
    Under DistributedDataParallel call the module (`forward`) and take the loss of its outputs.

    Raises ValueError for unknown settings, steps < 0, patterns that match nothing, and, where data enter,
    for shapes that do not fit and for a support set of one class; RuntimeError when the loss is not finite.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float = 0.01,
        steps: int = 1,
        first_order: bool = False,
        learn_lr: str = "element",
        lr_bounds: tuple[float, float] | None = None,
        norm_stats: str = "batch",
        inner_params: Sequence[str] = ("*",),
        loss: str | TaskLoss = "bce",
        engine: str = "auto",
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}")
        if learn_lr not in LEARN_LR:
            raise ValueError(f"learn_lr must be one of {', '.join(LEARN_LR)}, got {learn_lr!r}")
        if isinstance(loss, str) and loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, or a function, got {loss!r}")
        if lr_bounds is not None and not lr_bounds[0] < lr < lr_bounds[1]:
            raise ValueError(f"lr must lie strictly between lr_bounds = {lr_bounds}, got {lr}")
        self.module = module
        self.steps, self.first_order, self.learn_lr, self.lr_bounds = steps, first_order, learn_lr, lr_bounds
        self.norm_stats, self.inner_params, self.loss = norm_stats, tuple(inner_params), loss
        self.checkpoint = checkpoint
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        for pattern in self.inner_params:
            if not any(fnmatchcase(name, pattern) for name in trained):
                raise ValueError(f"inner_params: {pattern!r} matches none of {', '.join(trained) or 'none'}")
        self.inner_names = tuple(n for n in trained if any(fnmatchcase(n, p) for p in self.inner_params))
        start = lr if lr_bounds is None else _logit((lr - lr_bounds[0]) / (lr_bounds[1] - lr_bounds[0]))
        rates = [
            torch.full(_rate_shape(trained[n], learn_lr), start, dtype=trained[n].dtype)
            for n in self.inner_names
        ]
        self.rates = nn.ParameterList(
            nn.Parameter(r.to(trained[n].device), requires_grad=learn_lr != "none")
            for n, r in zip(self.inner_names, rates, strict=True)
        )
        # In a tuple: a copy for its structure alone, whose weights are nobody's parameters.
        self._forward = (TaskForward(module, "auto" if engine == "low_rank" else engine, norm_stats),)
        self.low_rank = engine == "low_rank"
        if self.low_rank and learn_lr == "element":
            raise ValueError(
                'a rate for every weight leaves no low rank: use learn_lr="row", "tensor" or "none" with '
                'engine="low_rank"'
            )
        if self.low_rank and linear_chain(self._forward[0].base) is None:
            raise ValueError(
                'engine="low_rank" runs an nn.Sequential of Linear and elementwise functions; '
                f'{type(module).__name__} holds something else: use engine="auto"'
            )

    @property
    def engine(self) -> str:
        """Which engine runs the tasks: "stacked", "vmap", "loop" or "low_rank"."""
        return "low_rank" if self.low_rank else self._forward[0].engine

    def learning_rates(self) -> dict[str, Tensor]:
        """α by parameter name, in the shape that `learn_lr` gives it."""
        found = list(self.rates)
        if self.lr_bounds is not None:
            low, high = self.lr_bounds
            found = [low + (high - low) * torch.sigmoid(raw) for raw in found]
        return dict(zip(self.inner_names, found, strict=True))

    def rate_summary(self) -> tuple[float, float, float]:
        """Smallest, median and largest α."""
        with torch.no_grad():
            every = torch.cat([r.reshape(-1).double() for r in self.learning_rates().values()])
        return float(every.min()), float(every.median()), float(every.max())

    def param_groups(self, weight_decay: float = 0.01) -> list[dict[str, Any]]:
        """θ with weight decay and α without, for an optimizer."""
        groups = [{"params": list(self.module.parameters()), "weight_decay": weight_decay}]
        if self.learn_lr != "none":
            groups.append({"params": list(self.rates), "weight_decay": 0.0})
        return groups

    # -- the inner loop ----------------------------------------------------------------------------------

    def adapt(
        self,
        xs: Shaped[Tensor, "tasks n ..."],
        ys: Tensor,
        steps: int | None = None,
    ) -> dict[str, Tensor]:
        """θ_K of every task [T, ...] after `steps` (default: K) on its xs [T, n, ...], ys [T, n].

        Differentiable in θ and α.
        """
        if self.low_rank:
            dense = self._thin(xs, ys, steps).dense()
            return {
                n: dense[n] if dense[n].dim() > len(p.shape) else dense[n].expand(len(xs), *p.shape)
                for n, p in self.module.named_parameters()
                if n in self.inner_names
            }
        own, rates, shared = self._parts()
        loop = self._loop(xs, ys, steps)
        return dict(zip(self.inner_names, descend(loop, len(xs), own, rates, shared), strict=True))

    @torch.no_grad()
    def adaptation_path(
        self, xs: Shaped[Tensor, "tasks n ..."], ys: Tensor, steps: int | None = None
    ) -> list[dict[str, Tensor]]:
        """θ_0 ... θ_K of every task [T, ...], without gradients."""
        own, rates, shared = self._parts()
        states = path(self._loop(xs, ys, steps), len(xs), own, rates, shared)
        return [dict(zip(self.inner_names, state, strict=True)) for state in states]

    def predict(
        self,
        adapted: Mapping[str, Tensor],
        xs: Shaped[Tensor, "tasks n ..."],
        support: Shaped[Tensor, "tasks n_s ..."] | None = None,
    ) -> Tensor:
        """Outputs [T, n] or [T, n, m] under adapted weights; `support` matters to norm_stats="support"."""
        outputs = self._forward[0](adapted, self._shared(), xs, support, self.training)
        return fitted_outputs(self.loss, outputs)

    def forward(
        self,
        xs_s: Shaped[Tensor, "tasks n_s ..."],
        ys_s: Tensor,
        xs_q: Shaped[Tensor, "tasks n_q ..."],
        steps: int | None = None,
    ) -> Tensor:
        """Adapt to each support and answer its query: outputs [T, n_q] or [T, n_q, m]."""
        if self.low_rank:
            return fitted_outputs(self.loss, self._thin(xs_s, ys_s, steps)(xs_q))
        return self.predict(self.adapt(xs_s, ys_s, steps), xs_q, xs_s)

    def meta_loss(self, tasks: Tasks, steps: int | None = None) -> Float[Tensor, ""]:
        """The mean over tasks of the query loss after adaptation."""
        losses = self.query_losses(tasks, steps).mean()
        if not bool(torch.isfinite(losses)):
            raise RuntimeError(self._what_blew_up())
        return losses

    def query_losses(self, tasks: Tasks, steps: int | None = None) -> Float[Tensor, " tasks"]:
        """The query loss of each task after adaptation."""
        outputs = self(tasks.xs_s, tasks.ys_s, tasks.xs_q, steps)
        check_set(self.loss, tasks.xs_q, tasks.ys_q, "query", adapting=False)
        return task_losses(self.loss, fitted_outputs(self.loss, outputs, tasks.ys_q), tasks.ys_q)

    def gradient_alignment(self, tasks: Tasks, steps: int | None = None) -> Float[Tensor, " tasks"]:
        """cos of the meta-gradient in θ and each task's own query gradient; see `models.meta_alignment`."""
        return gradient_alignment(self, tasks, steps)

    def reptile_loss(self, tasks: Tasks, steps: int | None = None) -> Float[Tensor, ""]:
        """½ Σ |θ - θ_K|², mean over tasks, θ_K held constant: its gradient in θ is Reptile's θ - mean θ_K.

        Tasks adapt to support and query together, as Reptile knows no query. α gets no gradient.
        """
        xs, ys = torch.cat([tasks.xs_s, tasks.xs_q], 1), torch.cat([tasks.ys_s, tasks.ys_q], 1)
        end = self.adaptation_path(xs, ys, steps)[-1]
        own, _, _ = self._parts()
        gaps = [(w - end[n]).square().flatten(1).sum(1) for n, w in zip(self.inner_names, own, strict=True)]
        return 0.5 * torch.stack(gaps).sum(0).mean()

    def fit(self, episodes: Iterable[Tasks], steps: int | None = None, **settings: Any) -> MetaTraining:
        """Meta-train on a stream of meta-batches; see `gradatim.models.meta_training.fit_meta`."""
        return fit_meta(self, episodes, steps, **settings)

    # -- parts -------------------------------------------------------------------------------------------

    def _parts(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        parameters = dict(self.module.named_parameters())
        own: list[Tensor] = [parameters[name] for name in self.inner_names]
        return own, list(self.learning_rates().values()), list(self._shared().values())

    def _shared(self) -> dict[str, Tensor]:
        mine = set(self.inner_names)
        found = {n: p for n, p in self.module.named_parameters() if n not in mine}
        return {**found, **dict(self.module.named_buffers())}

    def _thin(self, xs: Tensor, ys: Tensor, steps: int | None) -> AdaptedLayers:
        loop = self._loop(xs, ys, steps)  # for its checks
        chain = linear_chain(self._forward[0].base)
        assert chain is not None
        if xs.dim() != 3:
            raise ValueError(f'engine="low_rank" takes inputs [T, n, features], got {tuple(xs.shape)}')

        def losses(outputs: Tensor) -> Tensor:
            return task_losses(self.loss, fitted_outputs(self.loss, outputs, ys), ys)

        weights = dict(self.module.named_parameters())
        return adapt_low_rank(chain, weights, self.learning_rates(), xs, losses, loop.steps, self.first_order)

    def _loop(self, xs: Tensor, ys: Tensor, steps: int | None) -> InnerLoop:
        steps = self.steps if steps is None else steps
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}")
        check_set(self.loss, xs, ys, "support", adapting=True)
        run = self._forward[0]
        if xs.requires_grad:
            raise ValueError("no gradient flows to support inputs; detach xs_s, or embed inside the module")
        if run.dropout and self.training and not self.first_order:
            raise ValueError(
                "dropout draws anew in every pass, so exact meta-gradients do not exist: call .eval(), or "
                "set p=0 or first_order=True"
            )
        names = list(self._shared())

        def losses(own: Sequence[Tensor], shared: Sequence[Tensor]) -> Tensor:
            own_, shared_ = (
                dict(zip(keys, values, strict=True))
                for keys, values in ((self.inner_names, own), (names, shared))
            )
            outputs = run(own_, shared_, xs, None, self.training)
            return task_losses(self.loss, fitted_outputs(self.loss, outputs, ys), ys)

        return InnerLoop(losses, steps, self.first_order, self.checkpoint)

    def _what_blew_up(self) -> str:
        low, median, high = self.rate_summary()
        broken = [n for n, p in self.named_parameters() if not bool(torch.isfinite(p).all())]
        what = f"{', '.join(broken)} not finite" if broken else f"α in {low:g} .. {high:g}, median {median:g}"
        return f"the meta-loss is not finite ({what}); lower the outer rate, clip, or give lr_bounds"

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return (
            f"steps={self.steps}, first_order={self.first_order}, learn_lr={self.learn_lr!r}, "
            f"norm_stats={self.norm_stats!r}, engine={self.engine!r}"
        )


def maml(module: nn.Module, lr: float = 0.01, steps: int = 1, **settings: Any) -> MetaSGD:
    """MAML: one fixed rate."""
    return MetaSGD(module, lr=lr, steps=steps, learn_lr="none", **settings)


def fomaml(module: nn.Module, lr: float = 0.01, steps: int = 1, **settings: Any) -> MetaSGD:
    """First-order MAML: one fixed rate, inner gradients held constant."""
    return maml(module, lr, steps, first_order=True, **settings)


def anil(
    module: nn.Module, head: str | Sequence[str], lr: float = 0.01, steps: int = 1, **settings: Any
) -> MetaSGD:
    """ANIL: MAML that adapts the parameters matching `head` alone ("head.*")."""
    patterns = (head,) if isinstance(head, str) else tuple(head)
    return maml(module, lr, steps, inner_params=patterns, **settings)


def _rate_shape(weight: Tensor, learn_lr: str) -> tuple[int, ...]:
    if learn_lr == "element":
        return tuple(weight.shape)
    if learn_lr == "row" and weight.dim():
        return (weight.shape[0], *(1,) * (weight.dim() - 1))
    return ()


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
