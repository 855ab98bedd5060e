"""Self-modifying memory: a layer whose keys, values and rates come from the memories that they change.

"Nested Learning: The Illusion of Deep Learning Architectures" (Behrouz, Razaviyayn, Zhong, Mirrokni 2025,
arXiv 2512.24695), section on self-modifying Titans.
"""

from __future__ import annotations

from math import gcd

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradatim.models import self_modifying_linear as linear
from gradatim.models import self_modifying_mlp as mlp
from gradatim.models.decoder import vectorised
from gradatim.models.fast_linear import Linear
from gradatim.models.memory_state import Lane, MemoryState, blocks
from gradatim.models.self_reference import SelfRule, output_layer, unit


class SelfModifyingMemory(nn.Module):
    """A sequence layer with five memories per head, each of which is trained while it is used.

    Every token x (after a causal depthwise convolution) is turned, in each head of size d, into

        k = unit(M_k(x)),  v = unit(M_v(x)),  o = M_mem(unit(W_q x)),
        eta = sigmoid(M_eta(x) + b_eta),  a = sigmoid(M_alpha(x) + b_alpha),

    and each memory M takes one step of delta gradient descent with retention towards a target of its own
    making, vhat = M(v):

        M <- M (a I - eta k k^T) - eta grad 1/2 |M(k) - vhat|^2.

    For linear memories that is M <- M A with A = a I - eta (2k - v) k^T, the same A for all five: they
    share one d x d matrix Phi per sample, M_t = M_0 Phi_t. The matrices M_0 are ordinary parameters. A can
    flip a sign (its eigenvalue along k reaches a - 2 eta + eta v.k), which a delta rule with rates below 1
    cannot.

    Args:
        dim: width D of the input; a multiple of `num_heads`.
        memory: "linear", or "mlp": M(z) = z + W1 gelu(W2 z) with `hidden` units (default 2d); for eta and
            alpha W1 gelu(W2 z), one number. In "mlp" each layer's own input takes k's place in its decay.
        chunk_size: (memory that is read, other memories). 1: every token sees the writes of all before
            it. C: the paper's chunks: k, v, eta, a, vhat and gradients are taken at the state where the
            chunk of C tokens began, decay and delta term at every token. One must be a multiple of the other.
        decay: False fixes a = 1.
        normalize_value: False is the literal rule, v = M_v(x). It feeds v back through M and diverges in
            training; the default does not.
        conv_size: taps of the convolution; 0 for none.
        delta_gradient: False leaves k k^T out of the step (plain gradient descent: k - v in place of 2k - v).
        momentum: mu of a velocity that the gradients gather in; 0 for none.
        inner_keys, inner_values, inner_rates: False leaves M_k, M_v, or M_eta and M_alpha at their initial
            states: plain learned projections, never written. All three False: one memory that is trained.
        inner_queries: True puts q = unit(M_q x), a memory like that of the keys, in the place of unit(W_q x).
        read: "before" reads M_mem before the token's own write, as in the paper; "after" reads after it.
        method: "chunked" computes blocks of tokens at once; "steps" goes token by token. Same numbers.

    `initial` and everything fast are computed in float32 at least, whatever the input's type.

    Raises ValueError for sizes that do not fit, and in `forward` for a state of another batch; RuntimeError,
    with the token's index, where the memory is no longer finite.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        memory: str = "linear",
        chunk_size: tuple[int, int] = (1, 1),
        decay: bool = True,
        normalize_value: bool = True,
        conv_size: int = 4,
        *,
        delta_gradient: bool = True,
        momentum: float = 0.0,
        hidden: int | None = None,
        inner_keys: bool = True,
        inner_values: bool = True,
        inner_rates: bool = True,
        inner_queries: bool = False,
        read: str = "before",
        method: str = "chunked",
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        chunks = (int(chunk_size[0]), int(chunk_size[1]))
        if min(chunks) < 1 or max(chunks) % min(chunks):
            raise ValueError(f"chunk_size must be two sizes, one a multiple of the other, got {chunk_size}")
        for name, value, known in (
            ("memory", memory, ("linear", "mlp")),
            ("read", read, ("before", "after")),
            ("method", method, ("chunked", "steps")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if conv_size < 0:
            raise ValueError(f"conv_size must not be negative, got {conv_size}")
        self.dim, self.num_heads, self.head_dim = dim, num_heads, dim // num_heads
        self.memory: str = memory
        self.chunk_size, self.after, self.method = chunks, read == "after", method
        self.rule = SelfRule(
            decay,
            normalize_value,
            delta_gradient,
            momentum,
            inner_keys,
            inner_values,
            inner_rates,
            inner_queries,
        )
        self.hidden = 2 * self.head_dim if hidden is None else hidden
        self.frozen = False

        d = self.head_dim
        self.conv = nn.Parameter(torch.empty(dim, conv_size)) if conv_size else None
        self.query = None if inner_queries else Linear(dim, dim, bias=False)
        shapes: dict[str, tuple[int, ...]] = {"matrices": (3 * d + 2 + inner_queries * d, d)}
        if memory == "mlp":
            shapes = mlp.initial_shapes(d, self.hidden, inner_queries)
        self.initial = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(num_heads, *shape)) for name, shape in shapes.items()}
        )
        self.rate_bias = nn.Parameter(torch.empty(num_heads, 2))
        self.norm = nn.Parameter(torch.empty(d))
        self.out = Linear(dim, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Matrices N(0, 1 / fan in), rates sigmoid(0) and sigmoid(4), a convolution that passes x through."""
        with torch.no_grad():
            projections = [self.out] if self.query is None else [self.query, self.out]
            for weight in (*(p.weight for p in projections), *self.initial.values()):
                nn.init.normal_(weight, std=weight.shape[-1] ** -0.5, generator=generator)
            if self.memory == "linear" and not self.rule.normalize_value:
                # An input of unit root mean square then begins with values of unit length, as keys have.
                self.initial["matrices"][:, self.head_dim : 2 * self.head_dim] *= self.head_dim**-0.5
            self.rate_bias.copy_(torch.tensor([0.0, 4.0]))
            self.norm.fill_(1.0)
            if self.conv is not None:
                self.conv.zero_()
                self.conv[:, -1] = 1.0

    def freeze(self, frozen: bool = True) -> None:
        """Stop (or resume) writing: tokens are read with the memory as it is."""
        self.frozen = frozen

    def initial_state(self, batch: int, like: Tensor | None = None) -> MemoryState:
        """The state before the first token: the learned M_0 in every sample."""
        like = self.out.weight if like is None else like
        wide = like.new_empty(batch, self.num_heads, 0, dtype=wide_type(like.dtype))
        if self.memory == "linear":
            lanes = linear.fresh_lanes(wide, self.head_dim, self.chunk_size, self.rule)
        else:
            lanes = mlp.fresh_lanes(wide, dict(self.initial), self.chunk_size, self.rule)
        taps = 0 if self.conv is None else self.conv.shape[1] - 1
        return MemoryState(
            lanes,
            like.new_zeros(batch, max(taps, 0), self.dim),
            torch.zeros(batch, dtype=torch.long, device=like.device),
        )

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        state: MemoryState | None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], MemoryState]:
        """y [batch, time, D], and the state to pass to the next call.

        Samples where `mask` is False have no token there: nothing of them is changed. Such places must be
        at the end of a row (`HopeForCausalLM` moves padding there).
        """
        batch, time, _ = x.shape
        if x.shape[-1] != self.dim:
            raise ValueError(f"the last axis must be {self.dim} wide, got {x.shape[-1]}")
        fresh = state is None
        state = self.initial_state(batch, x) if state is None else state
        if len(state) != batch:
            raise ValueError(f"the state holds {len(state)} samples, the input {batch}")
        mixed, conv = causal_conv(x, self.conv, state.conv, mask)
        with torch.autocast(x.device.type, enabled=False):
            wide = wide_type(x.dtype)
            queries = None
            if self.query is not None:
                queries = unit(split(self.query(mixed.to(self.query.weight.dtype)), self.num_heads).to(wide))
            heads = split(mixed, self.num_heads).to(wide)
            found, lanes = self._run(heads, queries, state, mask, fresh, self.method == "steps")
            if not is_finite(lanes):
                with torch.no_grad():  # a block that holds a NaN has it everywhere: look token by token
                    found, _ = self._run(heads, queries, state, mask, fresh, steps=True)
                raise RuntimeError(lost_message(found))
            found = found * (found.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.norm.to(wide)
        y = self.out(found.transpose(1, 2).flatten(2).to(self.out.weight.dtype)).to(x.dtype)
        return y, MemoryState(lanes, conv, state.tokens + count(mask, time))

    def _run(
        self,
        x: Tensor,
        queries: Tensor | None,
        state: MemoryState,
        mask: Tensor | None,
        fresh: bool,
        steps: bool,
    ) -> tuple[Tensor, tuple[Lane, ...]]:
        """o [batch, heads, time, d] and the lanes after the last token."""
        initial = {name: value.to(x.dtype) for name, value in self.initial.items()}
        bias = self.rate_bias.to(x.dtype)
        if self.memory == "linear":
            d = self.head_dim
            own = initial["matrices"].shape[1] - 3 * d - 2
            writers, own_queries, reader = initial["matrices"].split([2 * d + 2, own, d], dim=1)
            weights, offset = output_layer(x, writers, bias, self.rule)
            base, chunks = linear.block_size(self.chunk_size), linear.lane_chunks(self.chunk_size)
        else:
            base, chunks = gcd(*self.chunk_size), mlp.lane_chunks(self.chunk_size, self.rule)
        time = x.shape[2]
        cuts = blocks(time, state.tokens, base if max(self.chunk_size) > 1 else 1, fresh)
        if steps:
            cuts = [(t, t + 1) for t in range(time)]
        elif max(self.chunk_size) == 1 and self.memory == "linear":
            cuts = blocks(time, state.tokens, base, fresh=True)
        writing = None if mask is None else mask[:, None]
        if self.frozen:
            writing = torch.zeros(x.shape[0], 1, time, dtype=torch.bool, device=x.device)
        lanes, outputs = state.lanes, []
        for start, end in cuts:
            seen = state.tokens + (start if mask is None else mask[:, :start].sum(1))
            lanes = tuple(lane.begin_block(seen, c) for lane, c in zip(lanes, chunks, strict=True))
            part = None if writing is None else writing[..., start:end]
            rows = (x[:, :, start:end], None if queries is None else queries[:, :, start:end])
            if self.memory == "linear":
                one = linear.linear_step if end - start == 1 else linear.linear_block
                layer = (weights, offset[:, :, start:end])
                o, lanes = one(lanes, *rows, layer, own_queries, self.rule, part, self.after)
            else:
                o, lanes = mlp.mlp_block(
                    lanes, *rows, initial, bias, self.rule, self.chunk_size, part, self.after
                )
            outputs.append(o)
        found = torch.cat(outputs, dim=2) if outputs else x
        if self.memory == "linear":
            found = torch.einsum("bhtd,hmd->bhtm", found, reader)
        return found, lanes


def check_heads(dim: int, num_heads: int) -> None:
    """Raises ValueError where heads do not divide the width."""
    if dim < 1 or num_heads < 1 or dim % num_heads:
        raise ValueError(f"dim must be a positive multiple of num_heads, got {dim} and {num_heads}")


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type of fast weights: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def split(x: Tensor, heads: int) -> Tensor:
    """[batch, time, D] -> [batch, heads, time, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def count(mask: Tensor | None, time: int) -> Tensor | int:
    """How many tokens each sample brings."""
    return time if mask is None else mask.sum(1)


def causal_conv(x: Tensor, taps: Tensor | None, past: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """y_t = sum_j taps_j x_(t - K + 1 + j) per channel; also the last K - 1 inputs that are there."""
    if taps is None or taps.shape[1] == 0:
        return x, past
    size = taps.shape[1]
    everything = torch.cat([past.to(x.dtype), x], dim=1)
    weight = taps.to(x.dtype)
    y = sum((everything[:, j : j + x.shape[1]] * weight[:, j] for j in range(size)), torch.zeros_like(x))
    if size == 1:
        return y, past
    if mask is None:
        return y, everything[:, -(size - 1) :]
    last = mask.sum(1)[:, None] + torch.arange(size - 1, device=x.device)
    return y, everything.gather(1, last[..., None].expand(-1, -1, x.shape[2]))


def is_finite(lanes: tuple[Lane, ...]) -> bool:
    """Whether every fast weight is a finite number (assumed where values cannot be asked for)."""
    first = lanes[0].matrix.value
    if vectorised(first) or torch.compiler.is_compiling():
        return True
    return all(bool(torch.isfinite(lane.matrix.value.detach()).all()) for lane in lanes)


def lost_message(found: Tensor) -> str:
    """Names the first read [batch, heads, time, d] of a token-by-token run that is not finite."""
    lost = ~torch.isfinite(found).all(-1).all(1)  # [batch, time]
    first = torch.where(lost.any(1), lost.int().argmax(1), found.shape[2])
    sample = int(first.argmin())
    return (
        f"the memory of sample {sample} is not finite at token {int(first[sample])}; keep "
        "normalize_value=True, lower the learning rate, or start the bias of eta lower"
    )
