"""Which attention heads copy labels: from an earlier copy of the input, or from its nearest neighbour?

Bhattamishra, Patel, Blunsom, Kanade, "Understanding In-Context Learning in Transformers and LLMs by Learning
to Learn Discrete Functions" (2023, arXiv 2310.03016).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradatim.probes.boolean_references import NearestNeighbours
from gradatim.tasks.contexts import ContextTask, ICLBatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("induction", "nearest")
Embed = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AttentionScores:
    """Mean attention [layers, heads] from inputs to the labels they should copy.

    `chance` is what uniform attention over all tokens so far would score. A head counts as an induction or
    nearest-neighbour head from `threshold` on.
    """

    scores: Float[np.ndarray, "layers heads"]
    kind: str
    chance: float
    threshold: float = 0.5

    @property
    def heads(self) -> list[tuple[int, int]]:
        """(layer, head) of every head over the threshold, strongest first."""
        found = np.argwhere(self.scores >= self.threshold)
        return [(int(l), int(h)) for l, h in sorted(found, key=lambda at: -self.scores[tuple(at)])]

    def __str__(self) -> str:
        layer, head = np.unravel_index(self.scores.argmax(), self.scores.shape)
        return (
            f"{len(self.heads)} {self.kind} heads of {self.scores.size}; strongest: layer {layer}, head"
            f" {head}, {self.scores.max():.3f} (chance {self.chance:.3f})"
        )

    def plot(self, figure: Figure) -> None:
        """A map of heads on an empty Matplotlib figure."""
        axis = figure.subplots()
        image = axis.imshow(self.scores, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set(xlabel="head", ylabel="layer", title=f"{self.kind} score")
        axis.set_xticks(range(self.scores.shape[1]))
        axis.set_yticks(range(self.scores.shape[0]))
        figure.colorbar(image, ax=axis, label="attention")


def attention_scores(
    model: nn.Module,
    x: Float[Tensor, "batch m n"],
    y: Float[Tensor, "batch m"],
    kind: str = "induction",
    *,
    embed: Embed | None = None,
    start: int | None = None,
    threshold: float = 0.5,
) -> AttentionScores:
    """Scores of every head on prompts x, y, laid out as x_1, y_1, x_2, y_2, ...

    - "induction": attention from the token of x_t to the labels of earlier equal inputs, summed over them and
      averaged over all t that have one (`repeated_prompts` makes such prompts);
    - "nearest": attention from x_t to the label of its nearest earlier input (highest cosine, the first among
      equals), averaged over t >= `start` (default: the second half of the prompt).

    `model` is an `InContextTransformer`, or any Hugging Face decoder that returns attentions; for the latter
    `embed(x, y)` gives its `inputs_embeds` [batch, 2m, width]. Raises ValueError for another `kind`, a start
    outside the prompt, no repeated input, or a model without attention.
    """
    if kind not in KINDS:
        raise ValueError(f'kind must be "induction" or "nearest", got {kind!r}')
    wanted = _equal_earlier(x) if kind == "induction" else _nearest_earlier(x, start)
    asked = wanted.any(-1)
    if not bool(asked.any()):
        raise ValueError("no input comes again in any prompt: an induction score needs repeated_prompts")
    rows = []
    for attention in attention_maps(model, x, y, embed=embed):
        to_labels = attention[:, :, ::2, 1::2]  # from x_t to y_j
        hit = (to_labels * wanted[:, None].to(to_labels.dtype)).sum(-1)  # [batch, heads, m]
        weight = asked[:, None].to(hit.dtype)
        rows.append(((hit * weight).sum((0, 2)) / weight.sum()).double().cpu().numpy())
    seen = 2 * torch.arange(x.shape[1], device=x.device) + 1
    chance = float((wanted.sum(-1) / seen)[asked].mean())
    return AttentionScores(np.stack(rows), kind, chance, threshold)


def repeated_prompts(
    task: ContextTask,
    *,
    points: int = 12,
    repeats: int = 4,
    batch: int = 100,
    generator: torch.Generator | None = None,
) -> ICLBatch:
    """The first `points` pairs of each prompt, `repeats` times over (the paper: 12 points, 4 times, 100)."""
    drawn = task.sample(batch, generator=generator)
    if points > drawn.x.shape[1]:
        raise ValueError(f"the task has {drawn.x.shape[1]} points a prompt, got points={points}")
    return ICLBatch(
        drawn.x[:, :points].repeat(1, repeats, 1), drawn.y[:, :points].repeat(1, repeats), drawn.w
    )


@torch.no_grad()
def attention_maps(
    model: nn.Module, x: Tensor, y: Tensor, *, embed: Embed | None = None
) -> list[Float[Tensor, "batch heads time time"]]:
    """Attention probabilities of every layer on the tokens x_1, y_1, x_2, y_2, ..."""
    if embed is not None:
        with _eager(model):
            found = model(inputs_embeds=embed(x, y), output_attentions=True, use_cache=False)
        maps: Sequence[Tensor] = found.attentions or ()
    else:
        maps = _decoder_maps(model, x, y)
    if not len(maps):
        raise ValueError("the model has no attention to read; a Hugging Face model needs embed=")
    if maps[0].shape[-1] != 2 * x.shape[1]:
        raise ValueError(f"need two tokens per pair, got {maps[0].shape[-1]} tokens for {x.shape[1]} pairs")
    return list(maps)


def _decoder_maps(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Recompute what `CausalAttention` weighs with, from what each one was given."""
    from gradatim.models.decoder import CausalAttention, rotate

    maps: list[Tensor] = []

    def read(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, CausalAttention)
        h, _, rotation = inputs[:3]
        q, k, _ = (
            part.unflatten(-1, (module.heads, module.head_size)).transpose(1, 2)
            for part in module.qkv(h).chunk(3, dim=-1)
        )
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        scores = q @ k.transpose(-2, -1) * module.head_size**-0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=h.device).triu(1)
        maps.append(scores.masked_fill(later, -torch.inf).softmax(-1))

    heads = [part for part in model.modules() if isinstance(part, CausalAttention)]
    hooks = [part.register_forward_pre_hook(read) for part in heads]
    try:
        model_states = getattr(model, "token_states", None)
        if model_states is not None and heads:
            model_states(x, y)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


@contextlib.contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Fused attention gives no probabilities: take the plain one for a moment."""
    config = getattr(model, "config", None)
    before = getattr(config, "_attn_implementation", None)
    change = getattr(model, "set_attn_implementation", None)
    if change is None or before in (None, "eager"):
        yield
        return
    change("eager")
    try:
        yield
    finally:
        change(before)


def _equal_earlier(x: Tensor) -> Bool[Tensor, "batch m m"]:
    """[t, j]: x_j equals x_t and comes before it."""
    return (x[:, :, None] == x[:, None]).all(-1).tril(-1)


def _nearest_earlier(x: Tensor, start: int | None) -> Bool[Tensor, "batch m m"]:
    """[t, j]: j is the nearest neighbour of x_t, for t >= start."""
    m = x.shape[1]
    start = m // 2 if start is None else start
    if not 1 <= start < m:
        raise ValueError(f"start must lie in 1..{m - 1} for {m} points, got {start}")
    position = torch.arange(m, device=x.device)
    nearest = NearestNeighbours(1, "cosine").nearest(x)
    return (position == nearest[..., None]) & (position >= start)[:, None]
