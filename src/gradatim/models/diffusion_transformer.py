"""A bidirectional transformer over patches, modulated by a condition: the body of DiT, in one file.

"Scalable Diffusion Models with Transformers" (Peebles and Xie 2022, arXiv 2212.09748). With a condition c
[batch, D] (a time, a class, one learned vector) every block is

    h <- h + g1 * Attention((1 + s1) * LN(h) + b1);   h <- h + g2 * MLP((1 + s2) * LN(h) + b2)

(s, b, g) = Linear(silu(c)); LN has no weights of its own. "adaln" has no gates (g = 1); "adaln_zero" has
them and starts them, and the read-out, at 0: the untrained network is the identity, then gives 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gradatim.models.decoder import sinusoids
from gradatim.models.fast_linear import Linear


class PatchGrid(nn.Module):
    """[batch, C, H, W] as H/p * W/p tokens of C p p values, or [batch, L, D] as L/p tokens of p D values.

    Tokens run row by row. Positions are fixed waves: half of the width tells the row, half the column.
    Raises ValueError for another number of dimensions, or a size that the patch does not divide.
    """

    positions: Tensor

    def __init__(self, shape: Sequence[int], patch_size: int, width: int) -> None:
        super().__init__()
        shape = tuple(int(n) for n in shape)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ValueError(f"shape must be (C, H, W) or (L, D) of sizes at least 1, got {shape}")
        cut = shape[1:] if len(shape) == 3 else shape[:1]
        if patch_size < 1 or any(n % patch_size for n in cut):
            raise ValueError(f"patch_size must divide {cut} of shape {shape}, got {patch_size}")
        self.shape, self.patch_size = shape, patch_size
        self.grid = tuple(n // patch_size for n in cut)
        self.length = math.prod(self.grid)
        self.features = math.prod(shape) // self.length
        self.register_buffer("positions", self._waves(width), persistent=False)

    def _waves(self, width: int) -> Tensor:
        if len(self.grid) == 1:
            return sinusoids(torch.arange(self.length), width)
        if width % 2:
            raise ValueError(f"rows and columns of a grid need an even width, got {width}")
        rows, columns = (torch.arange(n) for n in self.grid)
        down, across = sinusoids(rows, width // 2), sinusoids(columns, width // 2)
        both = [down[:, None].expand(-1, len(columns), -1), across[None].expand(len(rows), -1, -1)]
        return torch.cat(both, dim=-1).flatten(0, 1)

    def split(self, x: Float[Tensor, "batch first *rest"]) -> Float[Tensor, "batch length features"]:
        """Arrays to tokens. Raises ValueError for another shape."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"expected [batch, {', '.join(map(str, self.shape))}], got {tuple(x.shape)}")
        p = self.patch_size
        if len(self.shape) == 2:
            return x.reshape(len(x), self.length, self.features)
        C, (rows, columns) = self.shape[0], self.grid
        cut = x.reshape(len(x), C, rows, p, columns, p)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(len(x), self.length, self.features)

    def join(self, tokens: Float[Tensor, "batch length features"]) -> Float[Tensor, "batch first *rest"]:
        """Tokens back to arrays."""
        p = self.patch_size
        if len(self.shape) == 2:
            return tokens.reshape(len(tokens), *self.shape)
        C, (rows, columns) = self.shape[0], self.grid
        cut = tokens.reshape(len(tokens), rows, columns, C, p, p)
        return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), *self.shape)


class DiffusionTransformer(nn.Module):
    """Patches in, `out_features` numbers per patch out; every patch sees every other.

    Args:
        shape: of one item, (C, H, W) or (L, D).
        out_features: per token; None gives as many as a patch has, and `forward` an array of `shape`.
        in_arrays: arrays of `shape` that are read side by side, patch by patch.
        patch_size: p.
        hidden_size, num_hidden_layers, num_attention_heads: width D, blocks, heads.
        intermediate_size: width of the network inside a block; 4 D unless given.
        conditioning: "adaln" or "adaln_zero".
        layer_norm_eps: of the norms.
        seed: fixes the initial weights without touching the global random state.

    Weights start Xavier-uniform, biases 0. Raises ValueError for sizes below 1, a width that the heads do not
    divide, an unknown conditioning.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        out_features: int | None = None,
        in_arrays: int = 1,
        patch_size: int = 2,
        hidden_size: int = 64,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        intermediate_size: int | None = None,
        conditioning: str = "adaln_zero",
        layer_norm_eps: float = 1e-6,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        inner = 4 * hidden_size if intermediate_size is None else intermediate_size
        sizes = {
            "in_arrays": in_arrays,
            "hidden_size": hidden_size,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": inner,
            "out_features": 1 if out_features is None else out_features,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers must not be negative, got {num_hidden_layers}")
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size {hidden_size} cannot be divided among {num_attention_heads} heads")
        if conditioning not in ("adaln", "adaln_zero"):
            raise ValueError(f"conditioning must be 'adaln' or 'adaln_zero', got {conditioning!r}")
        self.hidden_size = hidden_size
        self.joined = out_features is None
        self.patches = PatchGrid(shape, patch_size, hidden_size)
        zero = conditioning == "adaln_zero"
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.read_in = nn.Linear(in_arrays * self.patches.features, hidden_size)
            self.blocks = nn.ModuleList(
                ModulatedBlock(hidden_size, num_attention_heads, inner, zero, layer_norm_eps)
                for _ in range(num_hidden_layers)
            )
            self.final_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps, elementwise_affine=False)
            self.final_modulation = nn.Linear(hidden_size, 2 * hidden_size)
            self.read_out = nn.Linear(hidden_size, out_features or self.patches.features)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
        if zero:
            modulations = [block.modulation for block in self.blocks if isinstance(block, ModulatedBlock)]
            for last in (*modulations, self.final_modulation, self.read_out):
                nn.init.zeros_(last.weight)

    def forward(
        self,
        *arrays: Float[Tensor, "batch first *rest"],
        condition: Float[Tensor, "rows width"],
        twice_differentiable: bool = False,
    ) -> Tensor:
        """[batch, *shape] -> [batch, length, out_features], or [batch, *shape] without `out_features`.

        Args:
            arrays: `in_arrays` of them.
            condition: one row per item, or one row for all of them (then it is modulated once).
            twice_differentiable: attention in plain operations. The fused kernels have a gradient, but no
                gradient of the gradient.
        """
        h = self.read_in(torch.cat([self.patches.split(x) for x in arrays], dim=-1))
        h = h + self.patches.positions.to(h.dtype)  # [batch, length, width]
        c = F.silu(condition).unsqueeze(1)  # [rows, 1, width]
        for block in self.blocks:
            h = block(h, c, twice_differentiable)
        scale, shift = self.final_modulation(c).chunk(2, dim=-1)
        out = self.read_out((1 + scale) * self.final_norm(h) + shift)
        return self.patches.join(out) if self.joined else out


class ModulatedBlock(nn.Module):
    """One block; `gated` has gates, all six modulations starting at 0 with the network's own init."""

    def __init__(self, width: int, heads: int, inner: int, gated: bool, eps: float) -> None:
        super().__init__()
        self.heads, self.gated = heads, gated
        self.attention_norm = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.up = Linear(width, inner)
        self.down = Linear(inner, width)
        self.modulation = nn.Linear(width, (6 if gated else 4) * width)

    def forward(self, h: Tensor, c: Tensor, twice_differentiable: bool = False) -> Tensor:
        """[batch, length, width], silu of the condition [rows, 1, width] -> [batch, length, width]."""
        scale1, shift1, scale2, shift2, *gates = self.modulation(c).chunk(6 if self.gated else 4, dim=-1)
        added = self._attention((1 + scale1) * self.attention_norm(h) + shift1, twice_differentiable)
        h = h + (gates[0] * added if self.gated else added)
        seen = (1 + scale2) * self.mlp_norm(h) + shift2
        added = self.down(F.gelu(self.up(seen), approximate="tanh"))
        return h + (gates[1] * added if self.gated else added)

    def _attention(self, h: Tensor, twice_differentiable: bool) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(h).chunk(3, dim=-1)
        )  # [batch, heads, length, head size]
        if twice_differentiable:
            mixed = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class TimeEmbedding(nn.Module):
    """A time, whole or not, as a vector: waves of it, then two layers with SiLU between."""

    def __init__(self, width: int, frequencies: int | None = None) -> None:
        super().__init__()
        self.frequencies = frequencies = width if frequencies is None else frequencies
        self.layers = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """[batch] -> [batch, width]."""
        weight = self.layers[0].weight
        assert isinstance(weight, Tensor)
        return self.layers(sinusoids(t, self.frequencies).to(weight.dtype))
