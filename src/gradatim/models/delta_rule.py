"""Matrix memories with projected keys and values: linear attention and the delta rule.

"Transformers are RNNs" (Katharopoulos et al. 2020, arXiv 2006.16236); "Linear Transformers Are Secretly Fast
Weight Programmers" (Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174); "Gated Delta Networks" (Yang et al.
2024, arXiv 2412.06464); rates up to 2 as in "Unlocking State-Tracking in Linear RNNs Through Negative
Eigenvalues" (Grazzi et al. 2024, arXiv 2411.12537).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradatim.models.fast_linear import Linear
from gradatim.models.memory_scan import MatrixState, block_kernel, last_state, read, solve_writes, step
from gradatim.models.memory_state import Lane, MemoryState
from gradatim.models.self_modifying_memory import (
    causal_conv,
    check_heads,
    count,
    is_finite,
    split,
    wide_type,
)
from gradatim.models.self_reference import unit


class DeltaRule(nn.Module):
    """A sequence layer around S_t = S_(t-1) (a_t I - beta_t k_t k_t^T) + beta_t v_t k_t^T, y_t = S_t q_t,
    per head.

    k and q are unit vectors, all of q, k, v are linear in the (shortly convolved) input, and beta_t =
    beta_max sigmoid(w x). A rate in (0, 1) moves what is stored under k towards v; its transition has
    eigenvalues 1 - beta >= 0 along k. With beta_max = 2 they reach -1: the memory can flip a sign, which
    tracking parity needs. `kind="linear_attention"` only adds: S_t = a_t S_(t-1) + v_t k_t^T.

    Args:
        dim: width D; a multiple of `num_heads`.
        kind: "delta" or "linear_attention".
        beta_max: in (0, 2].
        decay: a_t = sigmoid(w x + 4); False fixes a = 1.
        conv_size: taps of the causal depthwise convolution before the projections; 0 for none.
        chunk: tokens computed at once; numbers do not depend on it.

    Raises ValueError for sizes that do not fit or beta_max outside (0, 2], and for a state of another batch.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        kind: str = "delta",
        beta_max: float = 1.0,
        decay: bool = False,
        conv_size: int = 4,
        chunk: int = 32,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if kind not in ("delta", "linear_attention"):
            raise ValueError(f"kind must be delta or linear_attention, got {kind!r}")
        if not 0 < beta_max <= 2:
            raise ValueError(
                f"beta_max must be in (0, 2]: beyond, the memory grows without bound; got {beta_max}"
            )
        if chunk < 1 or conv_size < 0:
            raise ValueError(
                f"chunk must be at least 1 and conv_size at least 0, got {chunk} and {conv_size}"
            )
        self.dim, self.num_heads, self.head_dim = dim, num_heads, dim // num_heads
        self.delta, self.beta_max, self.decay, self.chunk = kind == "delta", beta_max, decay, chunk
        self.conv = nn.Parameter(torch.empty(dim, conv_size)) if conv_size else None
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.rates = nn.Linear(dim, 2 * num_heads)
        self.norm = nn.Parameter(torch.empty(self.head_dim))
        self.out = Linear(dim, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Projections N(0, 1 / D), rates sigmoid(0) and sigmoid(4), a convolution that passes x through."""
        with torch.no_grad():
            for layer in (self.qkv, self.rates, self.out):
                nn.init.normal_(layer.weight, std=self.dim**-0.5, generator=generator)
            self.rates.bias.view(2, -1).copy_(torch.tensor([[0.0], [4.0]]).expand(2, self.num_heads))
            self.norm.fill_(1.0)
            if self.conv is not None:
                self.conv.zero_()
                self.conv[:, -1] = 1.0

    def initial_state(self, batch: int, like: Tensor | None = None) -> MemoryState:
        """S_0 = 0 in every sample."""
        like = self.out.weight if like is None else like
        shape = (batch, self.num_heads, self.head_dim, self.head_dim)
        taps = 0 if self.conv is None else self.conv.shape[1] - 1
        return MemoryState(
            (Lane(MatrixState(like.new_zeros(shape, dtype=wide_type(like.dtype)))),),
            like.new_zeros(batch, taps, self.dim),
            torch.zeros(batch, dtype=torch.long, device=like.device),
        )

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        state: MemoryState | None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], MemoryState]:
        """y [batch, time, D], and the state to pass to the next call. `mask` as in `SelfModifyingMemory`."""
        batch, time, _ = x.shape
        state = self.initial_state(batch, x) if state is None else state
        if len(state) != batch:
            raise ValueError(f"the state holds {len(state)} samples, the input {batch}")
        mixed, conv = causal_conv(x, self.conv, state.conv, mask)
        mixed = mixed.to(self.qkv.weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            wide = wide_type(x.dtype)
            q, k, v = (split(part, self.num_heads).to(wide) for part in self.qkv(mixed).chunk(3, dim=-1))
            beta, log_decay = (
                self.rates(mixed).to(wide).transpose(1, 2).chunk(2, dim=1)
            )  # [batch, heads, time]
            beta = self.beta_max * torch.sigmoid(beta) if self.delta else torch.ones_like(beta)
            log_decay = F.logsigmoid(log_decay) if self.decay else torch.zeros_like(beta)
            if mask is not None:
                beta, log_decay = beta * mask[:, None], log_decay * mask[:, None]
            found, matrix = self._run(unit(q), unit(k), v, beta, log_decay, state.lanes[0].matrix)
            lanes = (Lane(matrix),)
            if not is_finite(lanes):
                raise RuntimeError(
                    "the memory is not finite: the input holds NaN, infinite or too large entries"
                )
            found = found * (found.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.norm.to(wide)
        y = self.out(found.transpose(1, 2).flatten(2).to(self.out.weight.dtype)).to(x.dtype)
        return y, MemoryState(lanes, conv, state.tokens + count(mask, time))

    def _run(
        self, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, matrix: MatrixState
    ) -> tuple[Tensor, MatrixState]:
        """y [batch, heads, time, d], read after each token's write, and the last matrix."""
        left = (k if self.delta else torch.zeros_like(k)).unsqueeze(-2)
        right = -v.unsqueeze(-2)
        outputs = []
        for start in range(0, q.shape[2], self.chunk):
            part = slice(start, start + self.chunk)
            keys, queries, rate, gone = k[:, :, part], q[:, :, part], beta[:, :, part], log_decay[:, :, part]
            if keys.shape[2] == 1:
                first = (keys[..., 0, :], left[:, :, start], right[:, :, start], rate[..., 0])
                matrix = step(matrix, gone[..., 0].exp(), *first)
                outputs.append(queries @ matrix.value.transpose(-2, -1))
                continue
            kernel = block_kernel(gone)
            if self.delta:
                writes = solve_writes(matrix, kernel, keys, left[:, :, part], right[:, :, part], rate)
            else:
                writes = right[:, :, part] * rate[..., None, None]
            outputs.append(read(matrix, kernel, keys, writes, queries, after=True))
            matrix = last_state(matrix, kernel, keys, writes)
        return torch.cat(outputs, dim=2) if outputs else q, matrix
