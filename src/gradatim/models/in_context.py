"""In-context learners: sequence models that predict y_t from the pairs before it and x_t.

`InContextTransformer` is the decoder of "What learning algorithm is in-context learning?" (Akyürek et al.
2022, arXiv 2211.15661) and of its successors; `InContextModel` is what it shares with the recurrent and the
attention-free learners: read-in, read-out at the x positions, loss.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from gradatim.models.decoder import Decoder, KeyValueCache
from gradatim.models.in_context_output import ICLOutput
from gradatim.models.in_context_tokens import ReadIn, check_context, context_loss, network

READ_OUT_HIDDEN = 256


class InContextConfig(PreTrainedConfig):
    """Sizes and layout of an in-context learner.

    Args:
        d: inputs are d wide.
        n_positions: the most pairs in a context.
        n_layer, n_head, n_embd: layers, heads and width (recurrent learners have no heads).
        arch: "preln", or "akyurek2022", the network of the paper's code: normalised values replace the
            stream, attention is n_embd / n_head wide in all, there is no final norm, and weights, biases
            and positions all start uniform in +-sqrt(1 / fan).
        tokens: "interleaved" (x_i, then y_i) or "paired" (x_i, then both), which spares the learner the first
            stage, copying x_i to y_i: it learns several times sooner. Say which one you used.
        y_column: y has a column of its own ("own"), or shares the first one with x ("shared").
        objective: "regression" (squared error) or "binary" (predictions are logits; labels -1 and +1).
        positions: "learned", "sinusoidal", "rotary" or "none".
        freeze: "none"; "mixers" (of the backbone only norms and positions are trained); or "backbone" (none
            of it is; read-in and read-out are three-layer networks). A frozen backbone starts from Xavier.
        initializer_range: standard deviation of the decoder's weights; None means 1 / sqrt(n_embd).
        state_size: of a state space backbone. filter_size, order: of a long-convolution backbone.

    Raises ValueError for an unknown choice or a size below 1.
    """

    model_type = "gradatim_in_context"

    def __init__(
        self,
        d: int = 8,
        n_positions: int = 40,
        n_layer: int = 12,
        n_head: int = 8,
        n_embd: int = 256,
        arch: str = "preln",
        tokens: str = "interleaved",
        y_column: str = "own",
        objective: str = "regression",
        positions: str = "learned",
        freeze: str = "none",
        initializer_range: float | None = 0.02,
        state_size: int = 64,
        filter_size: int = 64,
        order: int = 3,
        **kwargs: Any,
    ) -> None:
        sizes = {"d": d, "n_positions": n_positions, "n_head": n_head, "n_embd": n_embd}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        choices = {
            "arch": (arch, ("preln", "akyurek2022")),
            "tokens": (tokens, ("interleaved", "paired")),
            "y_column": (y_column, ("own", "shared")),
            "positions": (positions, ("learned", "sinusoidal", "rotary", "none")),
            "objective": (objective, ("regression", "binary")),
            "freeze": (freeze, ("none", "mixers", "backbone")),
        }
        for name, (chosen, known) in choices.items():
            if chosen not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {chosen!r}")
        if tokens == "paired" and y_column == "shared":
            raise ValueError('a paired token holds x and y: it needs y_column="own"')
        if arch == "akyurek2022" and n_embd % n_head**2:
            raise ValueError(
                f"akyurek2022 has heads of n_embd / n_head^2: {n_embd} is not a multiple of {n_head**2}"
            )
        self.d, self.n_positions = d, n_positions
        self.n_layer, self.n_head, self.n_embd = n_layer, n_head, n_embd
        self.arch, self.tokens, self.y_column = arch, tokens, y_column
        self.objective, self.positions, self.freeze = objective, positions, freeze
        self.initializer_range = initializer_range
        self.state_size, self.filter_size, self.order = state_size, filter_size, order
        super().__init__(**kwargs)


@runtime_checkable
class Backbone(Protocol):
    """What stands between read-in and read-out: causal, [batch, time, width] -> [batch, read, width]."""

    def __call__(
        self, h: Tensor, *, read: slice | None = None, output_hidden_states: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The last hidden states at the positions `read`, and those of all layers where asked for."""
        ...


class InContextModel(PreTrainedModel):
    """Read-in, a causal backbone and a linear read-out at the x positions.

    `seed` fixes the initial weights without touching the global random state. Subclasses give
    `make_backbone(config)`.
    """

    config_class = InContextConfig
    base_model_prefix = "in_context"
    main_input_name = "x"
    supports_gradient_checkpointing = True

    def __init__(self, config: InContextConfig, *, seed: int | None = None) -> None:
        super().__init__(config)
        # Before the parts exist: they set their own weights, and what Hugging Face would give them is kept
        # for weights that a checkpoint lacks.
        self.post_init()
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            hidden = READ_OUT_HIDDEN if config.freeze == "backbone" else None
            self.read_in = ReadIn(config.d, config.n_embd, config.tokens, config.y_column, hidden)  # type: ignore[arg-type]
            self.backbone: nn.Module = self.make_backbone(config)
            self.read_out = (
                nn.Linear(config.n_embd, 1) if hidden is None else network(config.n_embd, hidden, 1)
            )
            self.set_initial_weights(config)
            if config.freeze != "none":
                xavier(self.backbone)
        self._freeze()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As every `PreTrainedModel`; frozen parts are frozen again."""
        found = super().from_pretrained(*args, **kwargs)
        (found[0] if isinstance(found, tuple) else found)._freeze()
        return found

    def _freeze(self) -> None:
        if self.config.freeze == "none":
            return
        for module in self.backbone.modules():
            kept = self.config.freeze == "mixers" and isinstance(module, nn.LayerNorm | nn.Embedding)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(kept)

    def make_backbone(self, config: InContextConfig) -> nn.Module:
        """The part that mixes positions, with its initial weights."""
        raise NotImplementedError("use InContextTransformer, InContextLSTM, InContextRetNet ...")

    def set_initial_weights(self, config: InContextConfig) -> None:
        """Whatever differs from the initial weights that the parts give themselves."""

    def forward(
        self,
        x: Float[Tensor, "batch n d"],
        y: Float[Tensor, "batch n"],
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        scored: Tensor | None = None,
    ) -> ICLOutput:
        """Predictions [batch, n], entry t from the pairs before t; the loss where labels are given.

        `scored` [n] or [batch, n] weights the positions of the loss (default: all alike). Hidden states are
        those of the x positions: the embedding first, then every layer.

        Raises ValueError for shapes that do not fit, too many pairs, and NaN or infinite entries.
        """
        check_context(x, y, self.config.d, self.config.n_positions)
        # The last y is never read: its token would only cost time.
        tokens = self.read_in(x, y)[:, :-1]
        h, states = self.backbone(tokens, read=slice(0, None, 2), output_hidden_states=output_hidden_states)
        predictions = self.read_out(h).squeeze(-1)
        loss = None
        if labels is not None:
            loss = context_loss(self.config.objective, predictions, labels, scored)
        return ICLOutput(loss=loss, predictions=predictions, hidden_states=states)

    def token_states(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Hidden states [batch, 2n, width] of all tokens x_1, y_1, ...: embedding first, then every layer."""
        check_context(x, y, self.config.d, self.config.n_positions)
        states: tuple[Tensor, ...] = self.backbone(self.read_in(x, y), output_hidden_states=True)[1]
        return states

    @torch.no_grad()
    def predict_next(self, x: Tensor, y: Tensor, x_new: Tensor) -> Tensor:
        """What follows t pairs: x [batch, t, d], y [batch, t], x_new [batch, d] -> predictions [batch].

        With x_new [batch, m, d] each of the m is asked on its own: [batch, m]. t may be 0.
        """
        queries = x_new.unsqueeze(1) if x_new.dim() == 2 else x_new
        m = queries.shape[1]
        context = torch.cat([x.unsqueeze(1).expand(-1, m, -1, -1), queries.unsqueeze(2)], dim=2).flatten(0, 1)
        labels = torch.nn.functional.pad(y.unsqueeze(1).expand(-1, m, -1), (0, 1)).flatten(0, 1)
        found = self(context, labels).predictions[:, -1].unflatten(0, (-1, m))
        return found.squeeze(1) if x_new.dim() == 2 else found


class InContextTransformer(InContextModel):
    """The decoder-only in-context learner, as `config.arch` says."""

    def make_backbone(self, config: InContextConfig) -> nn.Module:
        """A `Decoder` of 2 n_positions tokens."""
        paper = config.arch == "akyurek2022"
        spread = config.initializer_range
        return Decoder(
            config.n_embd,
            config.n_layer,
            config.n_head,
            max_positions=2 * config.n_positions,
            positions=config.positions,  # type: ignore[arg-type]
            norm="replace" if paper else "pre",
            head_size=config.n_embd // config.n_head**2 if paper else None,
            epsilon=1e-6 if paper else 1e-5,
            initializer_range=config.n_embd**-0.5 if spread is None else spread,
        )

    def set_initial_weights(self, config: InContextConfig) -> None:
        """Uniform by fan, biases and positions too, for arch "akyurek2022"."""
        if config.arch == "akyurek2022":
            uniform_fan_in(self)

    @torch.no_grad()
    def predict_next(self, x: Tensor, y: Tensor, x_new: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """What follows t pairs: x [batch, t, d], y [batch, t], x_new [batch, d] -> predictions [batch].

        With x_new [batch, m, d] each of the m is asked on its own: [batch, m]. Pairs are run once, however
        many questions follow. A `cache` keeps them for the next call, which then brings only pairs that are
        new (x may be [batch, 0, d]).
        """
        cache = KeyValueCache() if cache is None else cache
        past, t = cache.get_seq_length() // 2, x.shape[1]
        queries = x_new.unsqueeze(1) if x_new.dim() == 2 else x_new
        everything = torch.cat([x, queries], dim=1)
        if past + t + 1 > self.config.n_positions:
            raise ValueError(
                f"{past + t} pairs and a question exceed n_positions = {self.config.n_positions}"
            )
        labels = torch.cat([y, y.new_zeros(queries.shape[:2])], dim=1)
        check_context(everything, labels, self.config.d, everything.shape[1])
        if t:
            self.backbone(self.read_in(x, y), cache=cache)
        asked = self.read_in(queries, queries.new_zeros(queries.shape[:2]))[:, ::2]
        m, before = queries.shape[1], cache.get_seq_length()
        # Every question sees the pairs and itself, not its neighbours, and stands where x_{t+1} would.
        seen = torch.cat([torch.ones(m, before, dtype=torch.bool), torch.eye(m, dtype=torch.bool)], dim=1).to(
            x.device
        )
        places = torch.full((m,), before, device=x.device)
        h, _ = self.backbone(asked, cache=cache.peek(), mask=seen, position_ids=places)
        found: Tensor = self.read_out(h).squeeze(-1)
        return found.squeeze(1) if x_new.dim() == 2 else found


def xavier(backbone: nn.Module) -> None:
    """Xavier's uniform weights on all matrices: where a backbone starts that is not trained."""
    for module in backbone.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 2 and not isinstance(module, nn.Embedding):
                nn.init.xavier_uniform_(parameter)


@torch.no_grad()
def uniform_fan_in(model: nn.Module) -> None:
    """U(-sqrt(1 / fan), sqrt(1 / fan)) as in the code of Akyürek et al. 2022.

    The fan of a kernel is its inputs, of a bias its own length (queries, keys and values have one each), of a
    position table its rows.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            parts = 3 if name.endswith("qkv") else 1
            module.weight.uniform_(-1, 1).mul_(module.in_features**-0.5)
            module.bias.uniform_(-1, 1).mul_((module.out_features // parts) ** -0.5)
        elif isinstance(module, nn.Embedding):
            module.weight.uniform_(-1, 1).mul_(module.num_embeddings**-0.5)
