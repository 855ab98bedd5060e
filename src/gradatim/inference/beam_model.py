"""One step of any language model for many beams at once, its caches following the beams.

Prompts are encoded once. Each later step reads one token per beam; a beam's keys and values are those of the
beam it grew from, picked by index, also where one prompt becomes many beams.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradatim.inference.next_token import keep_last


class BeamModel:
    """A causal or encoder-decoder model of transformers, fed with prompts, then with one token per beam.

    Models whose cache cannot be picked by row (recurrent states of their own making) are run over the whole
    sequences instead: the same answers, slower.

    Args:
        input_ids, attention_mask: [prompts, length]; padding may stand on either side.
        decoder_input_ids: what an encoder-decoder's decoder begins with; default: its start token.
        room: how many tokens are going to be generated; checked against the model's context.

    Raises ValueError for an empty prompt, one too long for the context, and a model without start token.
    """

    def __init__(
        self,
        model: Any,
        input_ids: Int[Tensor, "prompts length"],
        attention_mask: Tensor | None,
        *,
        decoder_input_ids: Sequence[int] | None = None,
        room: int = 0,
    ) -> None:
        self.model = model
        device = model.device
        ids = input_ids.to(device)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(device).long()
        if not ids.shape[1] or not bool((mask.sum(1) > 0).all()):
            raise ValueError("a prompt has no tokens")
        self.encoder_states: Tensor | None = None
        self.encoder_mask = mask
        if getattr(model.config, "is_encoder_decoder", False):
            order = (1 - mask).argsort(
                dim=1, stable=True
            )  # padding to the right: positions count from the left
            ids, mask = ids.gather(1, order), mask.gather(1, order)
            self.encoder_mask = mask
            with torch.no_grad():
                self.encoder_states = model.get_encoder()(ids, attention_mask=mask).last_hidden_state
            begin = _begin(model) if decoder_input_ids is None else list(decoder_input_ids)
            self.prompt = torch.tensor([begin], device=device).expand(len(ids), -1)
            self.mask = torch.ones_like(self.prompt)
        else:
            order = mask.argsort(dim=1, stable=True)  # padding to the left, the order of tokens kept
            self.prompt, self.mask = ids.gather(1, order), mask.gather(1, order)
        limit = getattr(model.config, "max_position_embeddings", None)
        longest = int(self.mask.sum(1).max()) + room
        if limit is not None and longest > limit:
            raise ValueError(
                f"prompt and generated tokens are {longest} tokens, but the model's context holds {limit}"
            )
        self.rows = torch.arange(len(ids), device=device)  # the prompt of every beam
        self.tokens = self.prompt[:, :0]
        self.cache: Any = None
        self._takes = inspect.signature(model.forward).parameters
        # Models written for earlier releases of transformers still say past_key_values.
        self._cache_name = "cache" if "cache" in self._takes else "past_key_values"

    @torch.no_grad()
    def first(self) -> Float[Tensor, "prompts vocab"]:
        """Log-probabilities of the first token after each prompt, float32 (float64 of a float64 model)."""
        return self._forward(self.prompt)

    @torch.no_grad()
    def step(
        self, parents: Int[Tensor, " beams"], tokens: Int[Tensor, " beams"]
    ) -> Float[Tensor, "beams vocab"]:
        """Log-probabilities of the next token where beam i goes on from row `parents[i]` with `tokens[i]`."""
        parents, new = parents.to(self.rows.device), tokens.to(self.rows.device)[:, None]
        self.rows = self.rows[parents]
        self.tokens = torch.cat([self.tokens[parents], new], dim=1)
        self.mask = torch.cat([self.mask[parents], torch.ones_like(new)], dim=1)
        if self.cache is None:
            return self._forward(torch.cat([self.prompt[self.rows], self.tokens], dim=1))
        self.cache.reorder_cache(parents)
        return self._forward(new)

    def _forward(self, ids: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"use_cache": True, **keep_last(self.model)}
        if self.cache is not None:
            inputs[self._cache_name] = self.cache
        if self.encoder_states is not None:
            from transformers.modeling_outputs import BaseModelOutput

            inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=self.encoder_states[self.rows])
            inputs["attention_mask"] = self.encoder_mask[self.rows]
            inputs["decoder_input_ids"] = ids
        else:
            inputs["input_ids"] = ids
            inputs["attention_mask"] = self.mask
            if "position_ids" in self._takes:
                inputs["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        inputs = {
            name: value for name, value in inputs.items() if name in self._takes or "kwargs" in self._takes
        }
        out = self.model(**inputs)
        cache = getattr(out, self._cache_name, None)
        self.cache = cache if hasattr(cache, "reorder_cache") else None
        logits = out.logits[:, -1]
        return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def _begin(model: Any) -> list[int]:
    for settings in (getattr(model, "generation_config", None), model.config):
        start = getattr(settings, "decoder_start_token_id", None)
        if start is not None:
            return [int(start)]
    raise ValueError("the model names no decoder_start_token_id; give decoder_input_ids")
