"""Do demonstrations in the prompt move a model's inside as training on them does?

Measures of Dai et al., "Why Can GPT Learn In-Context?" (2022, arXiv 2212.10559), with h the attention output
at the last token of a layer, ZS without demonstrations, ICL with them in the prompt, FT fine-tuned on them:

    SimAOU = cos(h_ICL - h_ZS, h_FT - h_ZS)          per layer
    SimAM  = cos(m_ICL, m_FT), m the last token's attention scores before softmax, over the question's tokens
    Rec2FTP = share of texts that FT gets right and ZS does not which ICL gets right too

Untrained models reach similar SimAOU (Deutch et al., 2023, arXiv 2311.07772): run the same on
`untrained_twin(model)`, and read every figure beside its Gaussian control, an update of the same length in a
random direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

IMPLEMENTATION = "gradatim_last_scores"


@dataclass(frozen=True)
class UpdateSimilarity:
    """Per layer, mean over texts; `recovered` is Rec2FTP, None where there was nothing to recover.

    `sim_am_zero_shot` compares ZS with FT: what SimAM has to exceed.
    """

    sim_aou: np.ndarray
    sim_aou_gaussian: np.ndarray
    sim_am: np.ndarray
    sim_am_zero_shot: np.ndarray
    recovered: float | None
    recoverable: int

    def __str__(self) -> str:
        rec = "none" if self.recovered is None else f"{self.recovered:.2f}"
        return (
            f"SimAOU {self.sim_aou.mean():.3f} (Gaussian {self.sim_aou_gaussian.mean():.3f}), "
            f"SimAM {self.sim_am.mean():.3f} (zero-shot {self.sim_am_zero_shot.mean():.3f}), "
            f"Rec2FTP {rec} of {self.recoverable}"
        )


def update_similarity(
    icl: Any,
    gd: Any,
    X: Sequence[str] | np.ndarray,
    y: Sequence[str] | np.ndarray | None = None,
    *,
    normalize: bool = False,
    seed: int = 0,
) -> UpdateSimilarity:
    """Compare a fitted InContextPredictor and a fitted GradientPredictor of the same model on texts `X`.

    `normalize` brings every h to length 1 before updates are taken, as the published code can. Rec2FTP needs
    the true labels `y`; its answers are the likeliest token over the whole vocabulary.
    Raises ValueError where the predictors belong to different models.
    """
    if icl.model is not gd.model:
        raise ValueError("both predictors must belong to the same model")
    shown = [icl.template.prompt(icl._examples, str(x)) for x in X]
    asked = [icl.template.question(str(x)) for x in X]
    zero = _inside(icl, asked, asked)
    context = _inside(icl, shown, asked)
    with gd.applied():
        tuned = _inside(icl, asked, asked)
    h = [torch.stack([one.outputs for one in side]) for side in (zero, context, tuned)]
    if normalize:
        h = [nn.functional.normalize(a, dim=-1) for a in h]
    by_prompt, by_descent = h[1] - h[0], h[2] - h[0]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(by_descent.shape, generator=generator, dtype=torch.float64).to(by_descent)
    maps = [
        np.mean([_head_cosine(a.scores, b.scores) for a, b in zip(one, tuned, strict=True)], axis=0)
        for one in (context, zero)
    ]
    recovered, recoverable = None, 0
    if y is not None:
        truth = torch.tensor([icl.label_ids[c] for c in y])
        right = [torch.tensor([one.answer for one in side]) == truth for side in (zero, context, tuned)]
        gained = right[2] & ~right[0]
        recoverable = int(gained.sum())
        recovered = float(right[1][gained].double().mean()) if recoverable else None
    return UpdateSimilarity(
        torch.cosine_similarity(by_prompt, by_descent, dim=-1).mean(0).cpu().numpy(),
        torch.cosine_similarity(by_prompt, noise, dim=-1).mean(0).cpu().numpy(),
        maps[0],
        maps[1],
        recovered,
        recoverable,
    )


@dataclass(frozen=True)
class _Inside:
    outputs: Float[Tensor, "layers hidden"]
    scores: list[Tensor]  # per layer [heads, tokens of the question]
    answer: int


@torch.no_grad()
def _inside(predictor: Any, prompts: Sequence[str], questions: Sequence[str]) -> list[_Inside]:
    """Attention outputs and scores at the last token, and the answer, of each prompt."""
    from gradatim.inference.next_token import check_length, encode, keep_last

    model, found = predictor.model, []
    training = model.training
    model.eval()
    try:
        with _last_scores(model) as scores:
            for prompt, question in zip(prompts, questions, strict=True):
                ids = encode(predictor.tokenizer, prompt)
                own = len(encode(predictor.tokenizer, question))
                check_length(model, [ids])
                with _attention_outputs(model) as outputs:
                    scores.clear()
                    tokens = torch.tensor([ids], device=model.device)
                    logits = model(tokens, use_cache=False, **keep_last(model)).logits[0, -1]
                found.append(
                    _Inside(
                        torch.stack(outputs).double(),
                        [s[0, :, -own:].double() for s in scores],
                        int(logits.argmax()),
                    )
                )
    finally:
        model.train(training)
    return found


@contextmanager
def _attention_outputs(model: Any) -> Iterator[list[Tensor]]:
    from gradatim.inference.gradient_scopes import decoder_layers

    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output)[0, -1])

    handles = []
    for layer in decoder_layers(model):
        attention = next((m for m in layer.children() if "attention" in type(m).__name__.lower()), None)
        if attention is None:
            raise ValueError(f"{type(layer).__name__} has no attention module")
        handles.append(attention.register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _last_scores(model: Any) -> Iterator[list[Tensor]]:
    """Scores of the last token before softmax and mask, layer by layer, [batch, heads, tokens]."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    scores: list[Tensor] = []

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        scaling: Any = None,
        **more: Any,
    ) -> Any:
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores.append((query[:, :, -1:] @ keys.mT)[:, :, 0] * factor)
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **more)

    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        yield scores
    finally:
        model.set_attn_implementation(before)


def _head_cosine(a: list[Tensor], b: list[Tensor]) -> np.ndarray:
    """Mean over heads of the cosine of two score rows, per layer."""
    pairs = zip(a, b, strict=True)
    return np.array([float(torch.cosine_similarity(x, z, dim=-1).mean()) for x, z in pairs])
