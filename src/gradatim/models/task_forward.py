"""One module, T sets of weights: the outputs of all tasks of a meta-batch at once.

Three engines give the same numbers:

- "stacked": an `nn.Sequential` of linear layers, elementwise functions and norms is read once into a plan of
  batched matrix products, without any wrapper around its operations; the fastest by far on small networks;
- "vmap": any module, `torch.func.functional_call` under `torch.vmap`;
- "loop": one task after the other, for what cannot be vectorised (fused recurrent cells, control flow that
  depends on data).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap

Weights = Mapping[str, Tensor]

_ELEMENTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Identity,
)  # fmt: skip


class TaskNorm(nn.Module):
    """What stands in for a BatchNorm: statistics of the rows it is told to use, never a running update.

    y = weight (x - mean) / sqrt(var + eps) + bias over channels (axis 1), with the mean and the biased
    variance of the first `rows` rows, of all rows where `rows` is None, or the running ones where `frozen`.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, frozen: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("num_batches_tracked", norm.num_batches_tracked)
        self.frozen, self.rows = frozen, None
        if frozen and norm.running_mean is None:
            raise ValueError(
                'norm_stats="frozen" needs running statistics, but a BatchNorm has track_running_stats=False;'
                ' use "support"'
            )

    rows: int | None
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Shaped[Tensor, "rows channels ..."]) -> Tensor:
        """One task's rows, normalised."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        if self.frozen:
            mean, var = self.running_mean, self.running_var
        else:
            used = x[: self.rows]
            axes = (0, *range(2, x.dim()))
            if used.numel() // used.shape[1] < 2:
                raise ValueError(
                    'a BatchNorm cannot take statistics of one row: give larger sets, or norm_stats="frozen"'
                )
            var, mean = torch.var_mean(used, dim=axes, correction=0)
        y = (x - mean.view(shape)) * torch.rsqrt(var.view(shape) + self.eps)
        return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)


class TaskForward:
    """Outputs of T tasks under T sets of weights.

    `own` are the weights that each task has a copy of [T, ...]; `shared` those that all have in common. The
    module is copied for its structure: its own values are never read. Raises ValueError for an unknown
    engine, or for "stacked" with a module that has no such plan.
    """

    def __init__(self, module: nn.Module, engine: str = "auto", norm_stats: str = "batch") -> None:
        if engine not in ("auto", "stacked", "vmap", "loop"):
            raise ValueError(f'engine must be "auto", "stacked", "vmap" or "loop", got {engine!r}')
        if norm_stats not in ("batch", "support", "frozen"):
            raise ValueError(f'norm_stats must be "batch", "support" or "frozen", got {norm_stats!r}')
        self.base, self.norms = _prepared(module, norm_stats == "frozen")
        self.norm_stats = norm_stats
        self.dropout = any(
            isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in self.base.modules()
        )
        plan = None if engine in ("vmap", "loop") else stacked_plan(self.base)
        if engine == "stacked" and plan is None:
            raise ValueError(
                'engine="stacked" runs an nn.Sequential of Linear, elementwise functions, BatchNorm1d and '
                f'LayerNorm; {type(module).__name__} is something else: use engine="vmap"'
            )
        self.plan = plan
        self.engine = "stacked" if plan is not None else "vmap" if engine == "auto" else engine

    def __getstate__(self) -> dict[str, Any]:
        # The plan holds on to this object's own norms: a copy makes its own.
        return {**self.__dict__, "plan": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.norms = [m for m in self.base.modules() if isinstance(m, TaskNorm)]
        self.plan = stacked_plan(self.base) if self.engine == "stacked" else None

    def __call__(
        self,
        own: Weights,
        shared: Weights,
        xs: Shaped[Tensor, "tasks n ..."],
        support: Shaped[Tensor, "tasks n_s ..."] | None = None,
        training: bool = True,
    ) -> Shaped[Tensor, "tasks n ..."]:
        """Outputs for `xs`; with norm_stats="support", `support` gives the statistics they are judged by."""
        joint = self.norm_stats == "support" and support is not None and bool(self.norms)
        if joint:
            assert support is not None
            for norm in self.norms:
                norm.rows = support.shape[1]
            xs = torch.cat([support, xs], dim=1)
        try:
            if self.base.training != training:
                self.base.train(training)
            found = self._run(own, shared, xs)
        finally:
            for norm in self.norms:
                norm.rows = None
        return found[:, support.shape[1] :] if joint and support is not None else found

    def _run(self, own: Weights, shared: Weights, xs: Tensor) -> Tensor:
        if self.plan is not None and not (self.dropout and self.base.training) and xs.dim() == 3:
            return self.plan(own, shared, xs)

        def one(mine: dict[str, Tensor], x: Tensor) -> Tensor:
            found: Tensor = functional_call(self.base, {**shared, **mine}, (x,))
            return found

        if self.engine == "loop":
            return torch.stack([one({k: v[t] for k, v in own.items()}, x) for t, x in enumerate(xs)])
        found: Tensor = vmap(one, randomness="different")(dict(own), xs)
        return found


def _prepared(module: nn.Module, frozen: bool) -> tuple[nn.Module, list[TaskNorm]]:
    """A copy whose BatchNorms take the statistics we say, with parameters of the same names."""
    base = copy.deepcopy(module)
    found: list[TaskNorm] = []
    if isinstance(base, nn.modules.batchnorm._BatchNorm):
        norm = TaskNorm(base, frozen)
        return norm, [norm]
    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                norm = TaskNorm(child, frozen)
                setattr(parent, name, norm)
                found.append(norm)
    return base, found


_Step = Callable[[Callable[[str], Tensor], Tensor], Tensor]


def stacked_plan(module: nn.Module) -> Callable[[Weights, Weights, Tensor], Tensor] | None:
    """The module as batched operations on [T, n, features], or None where a layer has no such form."""
    steps = _steps("", module)
    if steps is None:
        return None
    plan = list(steps)

    def run(own: Weights, shared: Weights, xs: Tensor) -> Tensor:
        def weight(name: str) -> Tensor:
            return own[name] if name in own else shared[name].expand(len(xs), *shared[name].shape)

        h = xs
        for step in plan:
            h = step(weight, h)
        return h

    return run


def _steps(prefix: str, module: nn.Module) -> list[_Step] | None:
    # Exact types: a subclass may do something else in its forward.
    if type(module) is nn.Sequential:
        found: list[_Step] = []
        for name, child in module.named_children():
            inner = _steps(f"{prefix}{name}.", child)
            if inner is None:
                return None
            found += inner
        return found
    if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"):
        return None
    if type(module) in _ELEMENTWISE:
        return [lambda _, h: module(h)]
    if isinstance(module, nn.Dropout):
        return []  # with p > 0 in training mode the plan is not used
    if type(module) is nn.Linear:
        return [_linear(prefix, module.bias is not None)]
    if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
        return [_layer_norm(prefix, module)]
    if type(module) is TaskNorm:
        return [_task_norm(prefix, module)]
    return None


def _linear(prefix: str, biased: bool) -> _Step:
    def step(weight: Callable[[str], Tensor], h: Tensor) -> Tensor:
        w = weight(f"{prefix}weight").transpose(1, 2)
        return torch.baddbmm(weight(f"{prefix}bias").unsqueeze(1), h, w) if biased else torch.bmm(h, w)

    return step


def _layer_norm(prefix: str, norm: nn.LayerNorm) -> _Step:
    def step(weight: Callable[[str], Tensor], h: Tensor) -> Tensor:
        y = nn.functional.layer_norm(h, norm.normalized_shape, eps=norm.eps)
        if norm.weight is not None:
            y = y * weight(f"{prefix}weight").unsqueeze(1)
        return y if norm.bias is None else y + weight(f"{prefix}bias").unsqueeze(1)

    return step


def _task_norm(prefix: str, norm: TaskNorm) -> _Step:
    def step(weight: Callable[[str], Tensor], h: Tensor) -> Tensor:
        if norm.frozen:
            mean, var = (weight(f"{prefix}running_{name}").unsqueeze(1) for name in ("mean", "var"))
        else:
            used = h[:, : norm.rows]
            if used.shape[1] < 2:
                raise ValueError(
                    'a BatchNorm cannot take statistics of one row: give larger sets, or norm_stats="frozen"'
                )
            var, mean = torch.var_mean(used, dim=1, keepdim=True, correction=0)
        y = (h - mean) * torch.rsqrt(var + norm.eps)
        if norm.weight is None:
            return y
        return y * weight(f"{prefix}weight").unsqueeze(1) + weight(f"{prefix}bias").unsqueeze(1)

    return step
