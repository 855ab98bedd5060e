"""Layers of linear self-attention that predict in context: the learner of the gradient-descent studies."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.configuration_utils import PretrainedConfig

from gradatim.models.in_context_output import ICLOutput
from gradatim.models.linear_self_attention import LinearSelfAttention
from gradatim.tasks.contexts import ContextTask, context_generator


class LSAConfig(PretrainedConfig):
    """Settings of a LinearAttentionRegressor.

    - `d`, `num_layers`; `tied=True` applies one layer `num_layers` times (looped), False gives each its own.
    - `num_heads`, `key_dim` (None: the token's width), `bias`, `include_query`, `sum_normalize`,
      `normalize`, `damping`, `clamp`: as in LinearSelfAttention. `y_only` lets layers change the y-entry
      alone.
    - `attention`: "linear", "softmax", "mixed", or "softmax-first" (softmax in the first of untied layers).
    - `layer_norm`: "none", "pre" (before every attention) or "between" (before all but the first).
    - `mlp_ratio`: 0 for none, else the widening of a GELU block after every attention.
    - `tokens`: "concat", e_j = (x_j, y_j); or "interleaved", x_1, y_1, x_2, y_2 ... as tokens of their own,
      with a code of `pos_dim` entries ("onehot", which needs 2 n + 1 of them, or "sinusoidal").
    - `features`: 0, or the size of a learned map of x (linear, then a residual GELU block) that replaces x.
    - `init_scale`: weights of the layers have variance init_scale / num_layers / fan_in.

    Raises ValueError where settings are out of range or contradict one another.
    """

    model_type = "gradatim-linear-attention"

    def __init__(
        self,
        d: int = 10,
        num_layers: int = 1,
        tied: bool = True,
        num_heads: int = 1,
        key_dim: int | None = None,
        attention: str = "linear",
        layer_norm: str = "none",
        mlp_ratio: int = 0,
        tokens: str = "concat",
        pos_dim: int = 0,
        positions: str = "onehot",
        include_query: bool = False,
        y_only: bool = False,
        damping: float = 1.0,
        clamp: float | None = None,
        bias: bool = False,
        normalize: str | None = None,
        sum_normalize: bool = False,
        features: int = 0,
        init_scale: float = 0.002,
        **kwargs: Any,
    ) -> None:
        self.d, self.num_layers, self.tied, self.num_heads = d, num_layers, tied, num_heads
        self.key_dim, self.attention, self.layer_norm, self.mlp_ratio = (
            key_dim,
            attention,
            layer_norm,
            mlp_ratio,
        )
        self.tokens, self.pos_dim, self.positions = tokens, pos_dim, positions
        self.include_query, self.y_only, self.damping, self.clamp = include_query, y_only, damping, clamp
        self.bias, self.normalize, self.sum_normalize = bias, normalize, sum_normalize
        self.features, self.init_scale = features, init_scale
        super().__init__(**kwargs)
        self._refuse_bad_settings()

    @property
    def x_width(self) -> int:
        """Entries of a token that carry x or its features; the y-entry follows them."""
        return self.features or self.d

    @property
    def width(self) -> int:
        """Entries of a token."""
        return self.x_width + 1 + self.pos_dim

    def _refuse_bad_settings(self) -> None:
        for name in ("d", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("mlp_ratio", "pos_dim", "features"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        choices = {
            "attention": ("linear", "softmax", "mixed", "softmax-first"),
            "layer_norm": ("none", "pre", "between"),
            "tokens": ("concat", "interleaved"),
            "positions": ("onehot", "sinusoidal"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if (self.tokens == "interleaved") != (self.pos_dim > 0):
            raise ValueError(
                f"interleaved tokens need a positional code and others have none: tokens={self.tokens!r}, "
                f"pos_dim={self.pos_dim}"
            )
        if self.attention == "softmax-first" and self.tied:
            raise ValueError("attention='softmax-first' needs layers of their own: tied=False")


class LinearAttentionRegressor(PreTrainedModel):
    r"""Tokens of pairs, K layers of (linear) self-attention, prediction = -(y-entry of the query).

    `forward(x, y)` predicts every y from the pairs before it (`predictions` [batch, n], entry 0 from
    none); `forward(x, y, query=...)` answers queries [batch, q, d] from all n pairs, [batch, q]. The
    query's y-entry starts at -w0^T x (buffer `w0` [d], zeros unless a construction sets it). `loss` is
    half the mean squared difference from `labels`, of the predictions' shape. `hidden_states` are the
    query's tokens [batch, n or q, width], embedding first.

    `generator` draws the weights; without one torch's default generator does.
    """

    config_class = LSAConfig
    base_model_prefix = "linear_attention"
    main_input_name = "x"

    def __init__(self, config: LSAConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config)
        self._generator = generator
        own = 1 if config.tied else config.num_layers
        self.layers = nn.ModuleList(self._layer(k) for k in range(own))
        self.mlps = nn.ModuleList(
            TokenMLP(config.width, config.mlp_ratio) for _ in range(own * (config.mlp_ratio > 0))
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(config.width) for _ in range(own * (config.layer_norm != "none"))
        )
        self.feature_map = FeatureMap(config.d, config.features) if config.features else None
        self.w0: Tensor
        self.register_buffer("w0", torch.zeros(config.d))
        self.post_init()

    def _layer(self, index: int) -> LinearSelfAttention:
        c = self.config
        first = "softmax" if index == 0 else "linear"
        return LinearSelfAttention(
            c.width,
            c.num_heads,
            c.key_dim,
            include_query=c.include_query,
            attention=first if c.attention == "softmax-first" else c.attention,
            damping=c.damping,
            clamp=c.clamp,
            bias=c.bias,
            normalize=c.normalize,
            sum_normalize=c.sum_normalize,
            only=c.x_width if c.y_only else None,
            init_scale=c.init_scale / c.num_layers,
            generator=self._generator,
        )

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LinearSelfAttention | TokenMLP | FeatureMap):
            module.reset_parameters(self._generator)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif module is self:
            nn.init.zeros_(self.w0)

    def forward(
        self,
        x: Float[Tensor, "batch n d"],
        y: Float[Tensor, "batch n"],
        labels: Float[Tensor, "batch answers"] | None = None,
        output_hidden_states: bool | None = False,
        *,
        query: Float[Tensor, "batch q d"] | None = None,
        return_dict: bool | None = None,
    ) -> ICLOutput:
        """Predictions for every prefix, or for `query` from all pairs, in the model's own precision.
        `return_dict` is taken for the sake of trainers and changes nothing.

        Raises ValueError for wrong shapes, for n = 0, and where one-hot positions are too few.
        """
        self._check(x, y, query)
        dtype = self.w0.dtype
        x, y, query = x.to(dtype), y.to(dtype), None if query is None else query.to(dtype)
        if query is not None:
            states = self._answer(x, y, query)
        else:
            # Every prefix is a context of its own: its tokens move by what its own pairs say.
            prefixes = [self._answer(x[:, :t], y[:, :t], x[:, t : t + 1]) for t in range(x.shape[1])]
            states = [torch.cat(layer, dim=1) for layer in zip(*prefixes, strict=True)]
        predictions = -states[-1][..., self.config.x_width]
        loss = None
        if labels is not None:
            if labels.shape != predictions.shape:
                raise ValueError(f"labels must be {tuple(predictions.shape)}, got {tuple(labels.shape)}")
            loss = 0.5 * F.mse_loss(predictions, labels.to(dtype))
        return ICLOutput(loss, predictions, tuple(states) if output_hidden_states else None)

    def _check(self, x: Tensor, y: Tensor, query: Tensor | None) -> None:
        d = self.config.d
        if x.ndim != 3 or x.shape[-1] != d or x.shape[1] == 0:
            raise ValueError(f"x must be [batch, n, {d}] with n at least 1, got {tuple(x.shape)}")
        if y.shape != x.shape[:2]:
            raise ValueError(f"y must be {tuple(x.shape[:2])}, got {tuple(y.shape)}")
        if query is not None and (
            query.ndim != 3 or query.shape[0] != len(x) or query.shape[-1] != d or query.shape[1] == 0
        ):
            raise ValueError(f"query must be [{len(x)}, q, {d}] with q at least 1, got {tuple(query.shape)}")

    def embed(
        self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"], query: Float[Tensor, "batch q d"]
    ) -> Float[Tensor, "batch t width"]:
        """Tokens of the context, then of the queries."""
        features = x if self.feature_map is None else self.feature_map(x)
        asked = query if self.feature_map is None else self.feature_map(query)
        start = -(query @ self.w0)[..., None]
        if self.config.tokens == "concat":
            context = torch.cat([features, y[..., None]], dim=-1)
            return torch.cat([context, torch.cat([asked, start], dim=-1)], dim=-2)
        n, q = x.shape[1], query.shape[1]
        inputs = F.pad(features, (0, 1))
        targets = F.pad(y[..., None], (features.shape[-1], 0))
        context = torch.stack([inputs, targets], dim=2).flatten(1, 2)  # x_1, y_1, x_2, y_2 ...
        tokens = torch.cat([context, torch.cat([asked, start], dim=-1)], dim=-2)
        where = torch.cat([torch.arange(2 * n), torch.full((q,), 2 * n)])
        code = position_code(where, self.config.pos_dim, self.config.positions).to(tokens)
        return torch.cat([tokens, code.expand(len(x), -1, -1)], dim=-1)

    def _answer(self, x: Tensor, y: Tensor, query: Tensor) -> list[Tensor]:
        """The queries' tokens [batch, q, width] after the embedding and after every layer."""
        batch, q = query.shape[:2]
        apart = self.config.include_query and q > 1
        if apart:
            x, y = x.repeat_interleave(q, 0), y.repeat_interleave(q, 0)
            query = query.reshape(batch * q, 1, -1)
        asked = 1 if apart else q
        tokens = self.embed(x, y, query)
        states = [tokens[:, -asked:]]
        for k in range(self.config.num_layers):
            tokens = self._block(tokens, asked, k, last=k == self.config.num_layers - 1)
            states.append(tokens[:, -asked:])
        return [s.reshape(batch, q, -1) for s in states] if apart else states

    def _block(self, tokens: Tensor, queries: int, k: int, *, last: bool) -> Tensor:
        """One layer; the last one moves the queries alone, since nothing reads the others any more."""
        own = 0 if self.config.tied else k
        layer = cast(LinearSelfAttention, self.layers[own])
        seen = tokens
        if self.config.layer_norm == "pre" or (self.config.layer_norm == "between" and k > 0):
            seen = self.norms[own](tokens)
        tokens = layer.add(tokens, layer.update(seen, queries, only_queries=last))
        return tokens + self.mlps[own](tokens) if len(self.mlps) else tokens

    def fit(
        self,
        task: ContextTask,
        steps: int = 1200,
        *,
        batch: int = 256,
        lr: float = 3e-2,
        max_norm: float = 1.0,
        warmup: float = 0.1,
        seed: int = 0,
    ) -> list[float]:
        """Train on fresh contexts of `task`, the last pair being the query; the loss of every step.

        Adam with betas (0.9, 0.98) and gradients clipped to the global norm `max_norm`. The rate rises to
        `lr` over the share `warmup` of the steps and falls along a cosine to 0. Step k draws from (seed, k)
        alone.
        """
        optimizer = torch.optim.Adam(self.parameters(), lr=lr, betas=(0.9, 0.98))
        rising = round(warmup * steps)

        def factor(step: int) -> float:
            if step < rising:
                return (step + 1) / rising
            return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

        losses = []
        for step in range(steps):
            drawn = task.sample(batch, generator=context_generator(seed, step), dtype=self.dtype)
            drawn = drawn.to(self.device)
            x, y = drawn.x, drawn.y
            out = self(x[:, :-1], y[:, :-1], labels=y[:, -1:], query=x[:, -1:])
            optimizer.zero_grad()
            out.loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), max_norm)
            optimizer.param_groups[0]["lr"] = lr * factor(step)
            optimizer.step()
            losses.append(out.loss.detach())
        return torch.stack(losses).tolist() if losses else []


class TokenMLP(nn.Module):
    """GELU(H W_1 + b_1) W_2 + b_2 on every token, `ratio` times as wide inside."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(width, ratio * width))
        self.up_bias = nn.Parameter(torch.empty(ratio * width))
        self.down = nn.Parameter(torch.empty(ratio * width, width))
        self.down_bias = nn.Parameter(torch.empty(width))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights of variance 1 / fan_in; biases start at 0."""
        for weight in (self.up, self.down):
            std = 1 / math.sqrt(weight.shape[0])
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
        for bias in (self.up_bias, self.down_bias):
            nn.init.zeros_(bias)

    def forward(self, tokens: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """What is added to the tokens."""
        inner = F.gelu(tokens @ self.up + self.up_bias, approximate="tanh")
        return inner @ self.down + self.down_bias


class FeatureMap(nn.Module):
    """m(x) = E x + MLP(E x): the tokenwise network whose features one attention layer regresses on."""

    def __init__(self, d: int, features: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(d, features))
        self.mlp = TokenMLP(features, 4)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the embedding with variance 1 / d."""
        std = 1 / math.sqrt(self.embedding.shape[0])
        nn.init.trunc_normal_(self.embedding, std=std, a=-2 * std, b=2 * std, generator=generator)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch features"]:
        """Features of every input."""
        embedded = x @ self.embedding
        return embedded + self.mlp(embedded)


def position_code(where: Tensor, size: int, kind: str) -> Float[Tensor, "t size"]:
    """One-hot or sinusoidal codes of positions. Raises ValueError where one-hot codes are too short."""
    if kind == "onehot":
        if int(where.max()) >= size:
            raise ValueError(f"pos_dim={size} one-hot codes cannot name position {int(where.max())}")
        return F.one_hot(where, size).double()
    half = (size + 1) // 2
    rate = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = where.double()[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :size]
