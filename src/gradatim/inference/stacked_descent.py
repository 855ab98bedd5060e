"""Plain gradient descent on several copies of a language model at once, one per order or learning rate.

The gradient of a linear layer over a batch of tokens is G = sum_t g_t x_t^T, with x_t what enters the layer
and g_t the gradient of what leaves it. After k plain steps the weights of copy s are therefore

    W_s = W - sum_k lr_s sum_t g_kst x_kst^T = W + U_s^T V_s,

and W_s x = W x + U_s^T (V_s x): all copies share one product with W, and none needs a matrix of its own
until it has seen about as many tokens as the layer is wide. Norm gains, biases and embedding rows are kept
per copy. The result is that of separate runs, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gradatim.inference.gradient_scopes import decoder_layers, is_norm, scope_parameters, value_layer
from gradatim.inference.next_token import check_length, keep_last, pad_left, positions

Prompts = Sequence[Sequence[int]]


class MatrixDelta:
    """What each copy adds to one matrix [out, in]: low-rank factors, rows of an embedding, a dense rest."""

    def __init__(self, copies: int, out_dim: int, in_dim: int, like: Tensor) -> None:
        self.out_dim, self.in_dim = out_dim, in_dim
        self.u, self.v = like.new_zeros(copies, 0, out_dim), like.new_zeros(copies, 0, in_dim)
        self.rows = like.new_zeros(copies, 0, in_dim)
        self.slot = torch.full((out_dim,), -1, device=like.device)
        self.tokens = torch.zeros(0, dtype=torch.long, device=like.device)
        self.dense: Tensor | None = None

    def multiply(self, x: Float[Tensor, "copies n in"]) -> Float[Tensor, "copies n out"]:
        """x times the added matrix, transposed as in a linear layer."""
        y = (x @ self.v.mT) @ self.u
        if self.dense is not None:
            y = y + x @ self.dense.mT
        if len(self.tokens):
            y = y.index_add(2, self.tokens, x @ self.rows.mT)
        return y

    def look_up(self, ids: Tensor) -> Float[Tensor, "copies n in"]:
        """Rows of the added matrix: `ids` is [copies, n]."""
        n = ids.shape[1]
        picked = self.u.gather(2, ids[:, None].expand(-1, self.u.shape[1], -1))
        found = picked.mT @ self.v
        if self.dense is not None:
            found = found + self.dense.gather(1, ids[:, :, None].expand(-1, -1, self.in_dim))
        if len(self.tokens):
            slots = self.slot[ids]
            own = self.rows.gather(1, slots.clamp(min=0)[:, :, None].expand(-1, n, self.in_dim))
            found = found + own * (slots >= 0)[:, :, None]
        return found

    def add_product(self, u: Float[Tensor, "copies n out"], v: Float[Tensor, "copies n in"]) -> None:
        """Add sum_n u_n v_n^T; the factors become a matrix when they are no longer smaller than one."""
        self.u, self.v = torch.cat([self.u, u], 1), torch.cat([self.v, v], 1)
        if self.u.shape[1] * (self.out_dim + self.in_dim) > self.out_dim * self.in_dim:
            product = self.u.mT @ self.v
            self.dense = product if self.dense is None else self.dense + product
            self.u, self.v = self.u[:, :0], self.v[:, :0]

    def add_rows(self, ids: Tensor, values: Float[Tensor, "copies n in"]) -> None:
        """Add `values` to the rows `ids` [copies, n]; repeated ids add up."""
        new = ids[self.slot[ids] < 0].unique()
        self.slot[new] = torch.arange(len(new), device=new.device) + len(self.tokens)
        self.tokens = torch.cat([self.tokens, new])
        grown = self.rows.new_zeros(len(self.rows), len(new), self.in_dim)
        self.rows = torch.cat([self.rows, grown], 1)
        self.rows.scatter_add_(1, self.slot[ids][:, :, None].expand_as(values), values)

    def pick(self, copies: Tensor) -> MatrixDelta:
        """The same of some of the copies."""
        found = MatrixDelta(len(copies), self.out_dim, self.in_dim, self.u)
        found.u, found.v, found.rows = self.u[copies], self.v[copies], self.rows[copies]
        found.slot, found.tokens = self.slot.clone(), self.tokens
        found.dense = None if self.dense is None else self.dense[copies]
        return found

    def matrix(self, copy: int) -> Tensor:
        """The added matrix [out, in] of one copy."""
        whole = self.u[copy].mT @ self.v[copy]
        if self.dense is not None:
            whole = whole + self.dense[copy]
        return whole.index_add(0, self.tokens, self.rows[copy])


@dataclass(frozen=True)
class Deltas:
    """What some copies have added to the weights, by parameter."""

    matrices: dict[int, MatrixDelta] = field(default_factory=dict)
    vectors: dict[int, Tensor] = field(default_factory=dict)

    def pick(self, copies: Tensor) -> Deltas:
        """The same of some of the copies."""
        return Deltas(
            {key: m.pick(copies) for key, m in self.matrices.items()},
            {key: v[copies] for key, v in self.vectors.items()},
        )


class StackedDescent:
    """`copies` copies of a model that share its weights and differ by their own plain gradient steps.

    A context manager: the model works as a stack inside the block and is itself again afterwards, untouched.

        with StackedDescent(model, copies=6) as stack:
            logits = stack(prompts)          # prompts[s] are copy s's, as many for each
            stack.step(loss_per_copy, lr)

    `scope` as in `scope_parameters` except "layer-causal". For "value:LAYER" the layers below are run once
    per prompt and remembered. Raises ValueError for a weight it cannot follow.
    """

    def __init__(self, model: Any, copies: int, scope: str = "all") -> None:
        if copies < 1:
            raise ValueError(f"copies must be at least 1, got {copies}")
        if scope == "layer-causal":
            raise ValueError("layer-causal descent has a loss per layer; use GradientPredictor")
        self.model, self.copies = model, copies
        self.parameters = scope_parameters(model, scope)
        self.lowest = value_layer(model, scope) if scope.startswith("value:") else 0
        self._deltas = Deltas()
        self._steps: list[Callable[[Tensor], None]] = []
        self._below: dict[tuple[int, ...], Tensor] = {}
        self._plan = list(self._modules())
        self._turned = {id(m.weight) for m, _ in self._plan if isinstance(m, Conv1D)}  # stored as [in, out]
        followed = {id(p) for m, wanted in self._plan for p in wanted}
        for name, p in self.parameters.items():
            if id(p) not in followed:
                raise ValueError(f"stacked descent cannot follow {name}; use GradientPredictor")

    def _modules(self) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
        """Modules that own weights of the scope, with those weights."""
        wanted = {id(p) for p in self.parameters.values()}
        for module in self.model.modules():
            own = [p for p in module.parameters(recurse=False) if id(p) in wanted]
            if own and (isinstance(module, nn.Linear | nn.Embedding | Conv1D) or is_norm(module)):
                yield module, own

    def __enter__(self) -> StackedDescent:
        self._flags = [(p, p.requires_grad) for p in self.model.parameters()]
        self._training = self.model.training
        self.model.eval()
        for p, _ in self._flags:
            p.requires_grad_(False)
        self._patched: list[nn.Module] = []
        for module, own in self._plan:
            wrap = self._linear if isinstance(module, nn.Linear | Conv1D) else self._norm
            wrap = self._embedding if isinstance(module, nn.Embedding) else wrap
            self._patch(module, wrap(module, own))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module in self._patched:
            del module.forward
        for p, flag in self._flags:
            p.requires_grad_(flag)
        self.model.train(self._training)

    def _patch(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        module.forward = forward
        self._patched.append(module)

    def __call__(self, prompts: Sequence[Prompts]) -> Float[Tensor, "copies prompts vocabulary"]:
        """Logits after every prompt; `prompts[s]` are copy s's. Gradients are recorded where enabled."""
        if len(prompts) != self.copies or len({len(p) for p in prompts}) != 1:
            raise ValueError(f"expected the same number of prompts for each of {self.copies} copies")
        flat = [p for own in prompts for p in own]
        check_length(self.model, flat)
        self._steps.clear()
        logits = self._forward(flat)
        return logits.unflatten(0, (self.copies, -1))

    def answers(self, prompts: Prompts, batch_size: int = 32) -> Float[Tensor, "copies prompts vocabulary"]:
        """Logits of every copy after the same prompts, without gradients."""
        size = max(1, batch_size // self.copies)
        with torch.no_grad():
            parts = [self([prompts[i : i + size]] * self.copies) for i in range(0, len(prompts), size)]
        return torch.cat(parts, dim=1)

    def retire(self, leaving: Bool[Tensor, " copies"]) -> Deltas:
        """Take copies out of the stack, so that they cost nothing any more; `recall` asks them later."""
        gone = self._deltas.pick(leaving.nonzero()[:, 0])
        self._deltas = self._deltas.pick((~leaving).nonzero()[:, 0])
        self.copies = int((~leaving).sum())
        return gone

    def recall(self, retired: Deltas, count: int, prompts: Prompts, batch_size: int = 32) -> Tensor:
        """`answers` of `count` copies that have been retired together."""
        mine = self._deltas, self.copies
        self._deltas, self.copies = retired, count
        try:
            return self.answers(prompts, batch_size)
        finally:
            self._deltas, self.copies = mine

    def step(self, losses: Float[Tensor, " copies"], lr: float | Float[Tensor, " copies"]) -> None:
        """One plain step W_s <- W_s - lr_s dloss_s/dW_s; lr 0 leaves a copy where it is."""
        rates = torch.as_tensor(lr, dtype=losses.dtype, device=losses.device).expand(self.copies)
        losses.sum().backward()
        for apply in self._steps:
            apply(-rates[:, None, None])
        self._steps.clear()

    def deltas(self, copy: int) -> dict[str, Tensor]:
        """What a copy has added to each weight of the scope, by name."""
        found = {}
        with torch.no_grad():
            for name, p in self.parameters.items():
                if id(p) in self._deltas.vectors:
                    found[name] = self._deltas.vectors[id(p)][copy]
                elif id(p) in self._deltas.matrices:
                    matrix = self._deltas.matrices[id(p)].matrix(copy)
                    found[name] = matrix.mT if id(p) in self._turned else matrix
        return found

    # -- how each kind of module answers for several copies ----------------------------------------------

    def _matrix(self, p: nn.Parameter, out_dim: int, in_dim: int) -> int:
        if id(p) not in self._deltas.matrices:
            self._deltas.matrices[id(p)] = MatrixDelta(self.copies, out_dim, in_dim, p)
        return id(p)

    def _vector(self, p: nn.Parameter) -> int:
        self._deltas.vectors.setdefault(id(p), p.new_zeros(self.copies, *p.shape))
        return id(p)

    def _learn(self, y: Tensor, update: Callable[[Tensor, Tensor], None]) -> Tensor:
        """`update(minus lr, gradient)` will run in the next step, with the gradient as [copies, n, width]."""
        if not torch.is_grad_enabled():
            return y
        if not y.requires_grad:
            y.requires_grad_(True)
        shape = (self.copies, -1, y.shape[-1])

        def remember(gradient: Tensor) -> None:
            g = gradient.reshape(shape)
            self._steps.append(lambda rate: update(rate, g))

        y.register_hook(remember)
        return y

    def _linear(self, module: Any, own: list[nn.Parameter]) -> Callable[[Tensor], Tensor]:
        original = module.forward
        turned = id(module.weight) in self._turned
        out_dim, in_dim = module.weight.shape[::-1] if turned else module.weight.shape
        mine = {id(p) for p in own}
        delta = self._matrix(module.weight, out_dim, in_dim) if id(module.weight) in mine else None
        has_bias = module.bias is not None and id(module.bias) in mine
        bias = self._vector(module.bias) if has_bias else None

        def forward(x: Tensor) -> Tensor:
            flat = x.reshape(self.copies, -1, in_dim)
            y = original(x)
            if delta is not None:
                y = y + self._deltas.matrices[delta].multiply(flat).reshape(y.shape)
            if bias is not None:
                y = y + self._spread(self._deltas.vectors[bias], y)
            seen = flat.detach()

            def update(rate: Tensor, g: Tensor) -> None:
                if delta is not None:
                    self._deltas.matrices[delta].add_product(rate * g, seen)
                if bias is not None:
                    self._deltas.vectors[bias] += (rate * g).sum(1)

            return self._learn(y, update)

        return forward

    def _norm(self, module: Any, own: list[nn.Parameter]) -> Callable[[Tensor], Tensor]:
        """Norms are affine in gain and bias; the difference of unit and zero gain is what gains multiply."""
        original, unit, null = module.forward, deepcopy(module), deepcopy(module)
        for p in (*unit.parameters(), *null.parameters()):
            p.data.zero_()
        unit.weight.data.fill_(1.0)
        mine = {id(p) for p in own}
        gain = self._vector(module.weight) if id(module.weight) in mine else None
        shift = getattr(module, "bias", None)
        bias = self._vector(shift) if shift is not None and id(shift) in mine else None

        def forward(x: Tensor) -> Tensor:
            y, plain = original(x), unit(x) - null(x)
            if gain is not None:
                y = y + plain * self._spread(self._deltas.vectors[gain], y)
            if bias is not None:
                y = y + self._spread(self._deltas.vectors[bias], y)
            seen = plain.detach().reshape(self.copies, -1, y.shape[-1])

            def update(rate: Tensor, g: Tensor) -> None:
                if gain is not None:
                    self._deltas.vectors[gain] += (rate * g * seen).sum(1)
                if bias is not None:
                    self._deltas.vectors[bias] += (rate * g).sum(1)

            return self._learn(y, update)

        return forward

    def _embedding(self, module: Any, own: list[nn.Parameter]) -> Callable[[Tensor], Tensor]:
        original, delta = module.forward, self._matrix(module.weight, *module.weight.shape)

        def forward(ids: Tensor) -> Tensor:
            mine = ids.expand(self._rows, -1).reshape(self.copies, -1)
            y = original(ids)
            added = self._deltas.matrices[delta].look_up(mine).reshape(self._rows, -1, y.shape[-1])
            y = y.expand(self._rows, *y.shape[1:]) + added
            return self._learn(y, lambda rate, g: self._deltas.matrices[delta].add_rows(mine, rate * g))

        return forward

    def _spread(self, vector: Float[Tensor, "copies width"], like: Tensor) -> Tensor:
        """A vector per copy, shaped to be added to rows of all copies."""
        rows = vector.repeat_interleave(len(like) // self.copies, dim=0)
        return rows.reshape(len(like), *[1] * (like.dim() - 2), -1)

    # -- the layers below a single trained one -------------------------------------------------------------

    def _forward(self, flat: Prompts) -> Tensor:
        self._rows = len(flat)
        ids, mask = pad_left(flat, self.model.device)
        inputs = {**positions(mask), **keep_last(self.model)}
        if self.lowest == 0:
            logits: Tensor = self.model(ids, use_cache=False, **inputs).logits[:, -1]
            return logits
        hidden = self._hidden_below(flat, ids.shape[1])
        layers = decoder_layers(self.model)[: self.lowest]
        for layer in layers:
            # Whatever a lower layer is given, the layer above it receives what was remembered.
            layer.forward = lambda *args, **kwargs: (hidden,) if self._in_tuples else hidden
        try:
            return self.model(ids, use_cache=False, **inputs).logits[:, -1]
        finally:
            for layer in layers:
                del layer.forward

    @torch.no_grad()
    def _hidden_below(self, flat: Prompts, width: int) -> Tensor:
        """What enters the trained layer, [rows, width, hidden], left-padded with zeros."""
        missing = [list(p) for p in dict.fromkeys(map(tuple, flat)) if p not in self._below]
        if missing:
            seen: list[Any] = []

            class Enough(Exception):
                pass

            def keep(module: nn.Module, args: Any, output: Any) -> None:
                seen.append(output)
                raise Enough

            handle = decoder_layers(self.model)[self.lowest - 1].register_forward_hook(keep)
            ids, mask = pad_left(missing, self.model.device)
            try:
                self.model(ids, use_cache=False, **positions(mask), **keep_last(self.model))
            except Enough:
                pass
            finally:
                handle.remove()
            self._in_tuples = isinstance(seen[0], tuple)
            output = seen[0][0] if self._in_tuples else seen[0]
            for p, row in zip(missing, output, strict=True):
                self._below[tuple(p)] = row[-len(p) :].clone()
        first = self._below[tuple(flat[0])]
        whole = first.new_zeros(len(flat), width, first.shape[-1])
        for row, key in zip(whole, map(tuple, flat), strict=True):
            row[-len(key) :] = self._below[key]
        return whole
