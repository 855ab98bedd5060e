"""An LSTM as a causal language model of Transformers: the recurrent baseline.

"Long Short-Term Memory" (Hochreiter and Schmidhuber 1997), as PyTorch's `nn.LSTM` has it, between an
embedding and a read-out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput

from gradatim.models.lstm_config import LSTMConfig


class LSTMForCausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, `num_hidden_layers` LSTM layers, read-out; `seed` fixes the initial weights.

    Generation reads the whole text again for every new token: the recurrent state is not handed out.
    """

    config: LSTMConfig
    config_class = LSTMConfig
    base_model_prefix = "lstm"
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LSTMConfig, *, seed: int | None = None) -> None:
        super().__init__(config)
        D = config.hidden_size
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.embed_tokens = nn.Embedding(config.vocab_size, D)
            self.layers = nn.LSTM(D, D, config.num_hidden_layers, batch_first=True)
            self.lm_head = nn.Linear(D, config.vocab_size, bias=False)
            self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.LSTM):
            bound = module.hidden_size**-0.5
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)
        elif isinstance(module, nn.Embedding | nn.Linear):
            init.normal_(module.weight, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        """The table of tokens."""
        return self.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        """Replace it."""
        self.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """The read-out."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Replace it."""
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput | tuple[Any, ...]:
        """[batch, time] ids -> logits [batch, time, V]; `labels` as the ids, shifted here, -100 not scored,
        and their mean loss, or the sum over `num_items_in_batch` (which `Trainer` counts over its accumulated
        batches).

        Padding (`attention_mask` 0, on either side) is skipped: it changes no state. Raises ValueError for
        labels of another shape, or together with `logits_to_keep`.
        """
        h = self.embed_tokens(input_ids)
        if attention_mask is None or bool(attention_mask.all()):
            h = self.layers(h)[0]
        else:
            # Real tokens to the front, in order: what comes after them cannot reach them.
            order = (~attention_mask.bool()).int().argsort(dim=1, stable=True).unsqueeze(-1).expand_as(h)
            found = self.layers(h.gather(1, order))[0]
            h = torch.empty_like(found).scatter(1, order, found)
        logits = self.lm_head(h[:, -logits_to_keep:] if logits_to_keep else h)
        loss = None
        if labels is not None:
            if labels.shape != input_ids.shape or logits_to_keep:
                raise ValueError(
                    f"labels must have the shape of input_ids, {tuple(input_ids.shape)}, and logits_to_keep "
                    f"be 0; got {tuple(labels.shape)} and {logits_to_keep}"
                )
            kept, targets = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
            total = F.cross_entropy(kept, targets, ignore_index=-100, reduction="sum")
            loss = total / ((targets != -100).sum() if num_items_in_batch is None else num_items_in_batch)
        out = CausalLMOutput(loss=loss, logits=logits)
        return out.to_tuple() if return_dict is False else out

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The whole text, every time."""
        mask = kwargs.get("attention_mask")
        return {"input_ids": input_ids, "attention_mask": mask, "logits_to_keep": 1}
