"""A causal language model that predicts by minimising an energy: `EnergyTransformerForCausalLM`.

"Energy-Based Transformers are Scalable Learners and Thinkers" (Gladstone et al. 2025, arXiv 2507.02092). With
tokens x, state z_r (logits of token r + 1), W [V, D] the projection and E_r the energy of a prediction:

    z^0 ~ N(0, 1);   p = softmax(z^i);   e = p W;   g = dE_r(x, e)/de;   z^{i+1} = p - alpha g W^T

Predictions do not see each other, so all positions descend at once. The gradient stays in D dimensions; only
the projection meets the vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import ModelOutput

from gradatim.models.energy_body import EnergyBody
from gradatim.models.energy_config import EnergyTransformerConfig
from gradatim.models.energy_descent_steps import Descent, Settings, descend, descend_in_chunks
from gradatim.models.energy_recipe import ExtrapolatedStepsWarning
from gradatim.models.energy_start import KeyedNoise, seeded
from gradatim.models.energy_vocabulary import States, drawn_rows
from gradatim.models.replay_buffer import ReplayBuffer


@dataclass
class EnergyCausalLMOutput(ModelOutput):
    """What a forward pass found, T being the positions that were asked for.

    loss               scalar: in training the mean over the steps that `loss_on` counts, else the last one's
    logits             [batch, T, V] the final state, in float32 or wider (not where training goes by
                       `vocab_chunk` without a replay buffer)
    energies           [batch, T, num_steps + 1]: before every step, and of the final prediction (in training
                       and generation, where nobody asked for that one, num_steps)
    step_losses        [steps] detached losses after each step that was scored
    candidate_energies [batch, candidates, T] final energies, where there were several candidates
    steps_taken        [batch, T] steps that moved each position
    cache              the context's keys and values
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    energies: Tensor | None = None
    step_losses: Tensor | None = None
    candidate_energies: Tensor | None = None
    steps_taken: Tensor | None = None
    cache: Cache | None = None


class EnergyTransformerForCausalLM(PreTrainedModel, GenerationMixin):
    """The Energy-Based Transformer for text.

    Works as any causal language model of Transformers (`generate`, `save_pretrained`, `Trainer`), except
    that a
    forward pass needs gradients: it switches them on for itself, also under `no_grad` and `inference_mode`.

    `seed` fixes the initial weights without touching the global random state.
    """

    config: EnergyTransformerConfig
    config_class = EnergyTransformerConfig
    base_model_prefix = "energy_transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EnergyBlock"]  # noqa: RUF012
    _supports_sdpa = True
    _skip_keys_device_placement = ["cache"]  # noqa: RUF012
    _tied_weights_keys = {"vocab_projection.weight": "body.embed_tokens.weight"}  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["step_size"]  # noqa: RUF012

    def __init__(self, config: EnergyTransformerConfig, *, seed: int | None = None) -> None:
        super().__init__(config)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.body = EnergyBody(config)
            # Used both ways: probabilities into the body's width, and gradients back to the vocabulary.
            self.vocab_projection = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            alpha = torch.tensor(config.step_size)
            if config.learn_step_size:
                self.step_size = nn.Parameter(alpha)
            else:
                self.register_buffer("step_size", alpha)
            # Training noise is a function of (noise_seed, rank, this): saved with the weights.
            self.register_buffer("draws", torch.tensor(0))
            self.post_init()
        self._starts = KeyedNoise(config.noise_seed)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            at_zero = getattr(module, "starts_at_zero", False)
            (init.zeros_ if at_zero else init.xavier_normal_)(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, EnergyTransformerForCausalLM):
            init.constant_(cast(Tensor, module.step_size), self.config.step_size)
            init.zeros_(cast(Tensor, module.draws))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; a learned step size stays in float32 beside half-precision ones."""
        return self.vocab_projection.weight.dtype

    def get_input_embeddings(self) -> nn.Module:
        """The table of the context's tokens."""
        return self.body.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        """Replace that table."""
        self.body.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """The projection W, [V, D] as any output layer's."""
        return self.vocab_projection

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Replace W."""
        self.vocab_projection = new_embeddings

    def param_groups(self, lr: float, weight_decay: float = 0.01) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: a learned step size has a rate of its own and no decay."""
        rest = [p for name, p in self.named_parameters() if name != "step_size" and p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": rest, "lr": lr, "weight_decay": weight_decay}]
        if self.config.learn_step_size:
            rate = lr * self.config.step_size_lr_multiplier
            groups.append({"params": [self.step_size], "lr": rate, "weight_decay": 0.0})
        return groups

    def replay_buffer(self) -> ReplayBuffer | None:
        """An empty buffer as the configuration wants it, or None where it wants none."""
        return ReplayBuffer(self.config.replay_capacity) if self.config.replay_capacity else None

    @deprecate_kwarg("past_key_values", "6.0.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_steps: int | None = None,
        step_size: float | None = None,
        num_candidates: int = 1,
        langevin_noise_std: float | None = None,
        tol: float | None = None,
        initial_state: Tensor | None = None,
        generator: torch.Generator | None = None,
        output_energies: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> EnergyCausalLMOutput | tuple[Any, ...]:
        """Descend, at every position, to the logits of the token that follows.

        Args:
            input_ids: [batch, time]. attention_mask: [batch, stored + time], 0 for padding (left or right).
            labels: [batch, time] as `input_ids`; shifted here, -100 is not scored.
            cache: what `use_cache` returned. Only new positions descend.
            logits_to_keep: only the last so many positions descend (0: all).
            num_steps, step_size, langevin_noise_std: of this call. In training the configuration's random
                ranges apply where they are not given; in evaluation there is no noise unless given.
            num_candidates: starts per position; the one of the lowest final energy is kept, position by
                position.
            tol: a position stops once its energy changes by less than this (evaluation only).
            initial_state: [k, time, V], in place of the noise where the last k sequences start.
            generator: of all that is drawn. Without one, evaluation starts from fixed noise that depends on
                `noise_seed`, the position and the candidate alone, and training draws from `noise_seed` and a
                counter that is saved with the weights.
            output_energies: also the energy of the final prediction (default: outside training).
            num_items_in_batch: what the summed loss is divided by (set by `Trainer`).

        Raises ValueError for num_steps, num_candidates or step_size out of range, more steps than a step
        embedding knows, too many positions, shapes that do not fit, a gradient that is not finite, and for
        output_hidden_states or output_attentions: there is no one stack of layers to show.
        """
        for asked in ("output_hidden_states", "output_attentions"):
            if kwargs.get(asked):
                raise ValueError(
                    f"{asked}=True: context and every step of the descent have layers of their own; "
                    "body.context(...) gives the context's keys and values"
                )
        settings = self._settings(
            num_steps, step_size, num_candidates, langevin_noise_std, tol, output_energies
        )
        grad = torch.is_grad_enabled()
        # Inference tensors cannot enter the graph of a step.
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            embeddings = self._embed(input_ids, inputs_embeds)
            batch, time = embeddings.shape[:2]
            use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
            if use_cache and cache is None:
                cache = DynamicCache()
            past = 0 if cache is None else cache.get_seq_length()
            visible = self._visible(attention_mask, batch, past, time, embeddings.device)
            positions = self._positions(position_ids, attention_mask, batch, past, time, embeddings.device)
            kept = logits_to_keep or time
            if labels is not None:
                self._check_labels(labels, (batch, time), kept)
            if generator is None and self.training:
                generator = self._next_generator(embeddings.device)
            rows = positions[:, -kept:]
            settings = settings.drawn(self.config, self.training, generator)
            if labels is not None and self.training and self.config.vocab_chunk:
                assert generator is not None
                return self._in_chunks(
                    embeddings, positions, visible, labels, num_items_in_batch, settings,
                    initial_state, generator, return_dict,
                )  # fmt: skip
            found = descend(
                self.body,
                self.vocab_projection.weight,
                settings,
                embeddings=embeddings,
                positions=positions,
                visible=visible,
                kept=kept,
                alpha=self._alpha(),
                start=self._start(rows, settings, initial_state, generator),
                noise=self._noise(rows, generator),
                cache=cache,
                graph=grad,
                score=None if labels is None else lambda z: _loss(z, labels, num_items_in_batch),
                training=self.training,
            )
            output = self._output(found, labels is not None, cache if use_cache else None)
        return output.to_tuple() if return_dict is False else output

    def _in_chunks(
        self,
        embeddings: Tensor,
        positions: Tensor,
        visible: Tensor,
        labels: Tensor,
        items: Tensor | int | None,
        settings: Settings,
        initial_state: Tensor | None,
        generator: torch.Generator,
        return_dict: bool | None,
    ) -> EnergyCausalLMOutput | tuple[Any, ...]:
        """A training pass that never holds the vocabulary for all tokens (`vocab_chunk`)."""
        config, weight = self.config, self.vocab_projection.weight
        batch, time = positions.shape
        if weight.dtype == torch.float16:
            raise ValueError("step sizes may overflow float16 with vocab_chunk: use bfloat16 or float32")
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        first = drawn_rows(seed, 0, config.initial_noise_std, len(weight), positions.device)
        known = None if initial_state is None else initial_state.flatten(0, 1)
        wide = torch.promote_types(weight.dtype, torch.float32)
        if initial_state is not None and (
            len(initial_state) > batch or initial_state.shape[1:] != (time, len(weight))
        ):
            raise ValueError(
                f"initial_state must be [k <= {batch}, {time}, {len(weight)}] with one candidate, "
                f"got {tuple(initial_state.shape)}"
            )

        def start(part: slice) -> Tensor:
            z = first(part, 0).to(wide)
            if known is not None:
                fresh = max(0, min(batch * time - len(known) - part.start, len(z)))
                begin = part.start + fresh - (batch * time - len(known))
                z[fresh:] = known[begin : begin + len(z) - fresh].to(z)
            return z

        std = settings.noise_std or 0.0
        noise = drawn_rows(seed, 1, std, len(weight), positions.device) if std else None
        targets = _following(labels).to(positions.device)
        found = descend_in_chunks(
            self.body,
            weight,
            settings,
            embeddings=embeddings,
            positions=positions,
            visible=visible,
            alpha=self._alpha(),
            states=States(weight, batch * time, config.vocab_chunk, start, noise),
            targets=targets,
            items=(targets != -100).sum().clamp(min=1) if items is None else items,
            whole=bool(config.replay_capacity),
        )
        output = self._output(found, True, None)
        return output.to_tuple() if return_dict is False else output

    def score(
        self,
        input_ids: Tensor,
        candidate_ids: Tensor,
        attention_mask: Tensor | None = None,
        step: int | None = None,
    ) -> Tensor:
        """Energies of given next tokens: lower means more compatible with what came before.

        Args:
            input_ids: [batch, time]. candidate_ids: what may follow each position, [batch, time] or
                [batch, time, k].
            step: the landscape, where there is one per step of descent (default: the last).

        Returns energies in the shape of `candidate_ids`. Compare them for one context only: energies have no
        common zero.
        """
        if candidate_ids.shape[:2] != input_ids.shape or candidate_ids.dim() > 3:
            raise ValueError(
                f"candidate_ids must be [batch, time] or [batch, time, k] for input_ids "
                f"{tuple(input_ids.shape)}, got {tuple(candidate_ids.shape)}"
            )
        step = self.config.num_steps - 1 if step is None else step
        several = candidate_ids if candidate_ids.dim() == 3 else candidate_ids.unsqueeze(-1)
        batch, time = input_ids.shape
        visible = self._visible(attention_mask, batch, 0, time, input_ids.device)
        positions = self._positions(None, attention_mask, batch, 0, time, input_ids.device)
        known = self.body.context(self.body.embed_tokens(input_ids), positions, visible, step=step)
        e = F.embedding(several.movedim(-1, 1), self.vocab_projection.weight)
        found = self.body.energies(e, known, positions, visible, step=step).movedim(1, -1)
        return found if candidate_ids.dim() == 3 else found.squeeze(-1)

    def start_state(
        self, input_ids: Tensor, candidate: int = 0, attention_mask: Tensor | None = None
    ) -> Tensor:
        """[batch, time, V]: where candidate number `candidate` starts in evaluation without a generator."""
        batch, time = input_ids.shape
        positions = self._positions(None, attention_mask, batch, 0, time, input_ids.device)
        rows = self._starts(positions, self.vocab_projection.weight.shape[0], 0, candidate)
        return self.config.initial_noise_std * rows.to(torch.promote_types(self.dtype, torch.float32))

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As every model; the energy of the final prediction is not computed for nothing."""
        kwargs.setdefault("output_energies", False)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        return inputs

    def _settings(
        self,
        num_steps: int | None,
        step_size: float | None,
        num_candidates: int,
        noise: float | None,
        tol: float | None,
        output_energies: bool | None,
    ) -> Settings:
        config = self.config
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        if step_size is not None and not step_size > 0:
            raise ValueError(f"step_size must be above 0, got {step_size}")
        if num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, got {num_candidates}")
        if noise is not None and not noise >= 0:
            raise ValueError(f"langevin_noise_std must not be negative, got {noise}")
        if tol is not None and not tol > 0:
            raise ValueError(f"tol must be above 0, got {tol}")
        if self.training and (num_candidates > 1 or tol is not None):
            raise ValueError("num_candidates and tol are for answering: call model.eval() first")
        most = config.max_trained_steps
        if num_steps is not None and num_steps > most:
            if config.step_embedding != "none":
                raise ValueError(
                    f"num_steps={num_steps}, but the step embedding knows {most} steps: "
                    'train with more, or with step_embedding="none"'
                )
            warnings.warn(
                f"thinking {num_steps} steps; training took at most {most}",
                ExtrapolatedStepsWarning,
                stacklevel=3,
            )
        if config.second_order == "finite_difference" and self.vocab_projection.weight.dtype.itemsize < 4:
            raise ValueError("finite differences need float32 weights: choose another second_order")
        energies = not self.training if output_energies is None else output_energies
        return Settings(num_steps, step_size, num_candidates, noise, tol, energies)

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is not None:
            return inputs_embeds.clone() if inputs_embeds.is_inference() else inputs_embeds
        assert input_ids is not None
        embedded: Tensor = self.body.embed_tokens(
            input_ids.clone() if input_ids.is_inference() else input_ids
        )
        return embedded

    def _visible(
        self, attention_mask: Tensor | None, batch: int, past: int, time: int, device: torch.device
    ) -> Tensor:
        """[batch or 1, 1, time, past + time]: which tokens a row may look at."""
        if past + time > self.config.max_position_embeddings:
            raise ValueError(
                f"{past + time} positions (padding included) exceed max_position_embeddings = "
                f"{self.config.max_position_embeddings}: shorten the text or train with a longer context"
            )
        causal = torch.ones(time, past + time, dtype=torch.bool, device=device).tril(past)[None, None]
        if attention_mask is None:
            return causal
        if attention_mask.shape != (batch, past + time):
            raise ValueError(
                f"attention_mask must be [batch, stored + time] = {(batch, past + time)}, "
                f"got {tuple(attention_mask.shape)}"
            )
        return causal & attention_mask.bool()[:, None, None, :]

    def _positions(
        self,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        batch: int,
        past: int,
        time: int,
        device: torch.device,
    ) -> Tensor:
        if position_ids is not None:
            return position_ids[:, -time:].expand(batch, -1).clone()
        if attention_mask is not None:
            return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -time:]
        return torch.arange(past, past + time, device=device).expand(batch, -1)

    def _check_labels(self, labels: Tensor, shape: tuple[int, int], kept: int) -> None:
        if labels.shape != shape:
            raise ValueError(f"labels must have the shape of the input, {shape}, got {tuple(labels.shape)}")
        if kept != shape[1]:
            raise ValueError("labels score every position: leave logits_to_keep at 0")

    def _next_generator(self, device: torch.device) -> torch.Generator:
        draws = cast(Tensor, self.draws)
        with torch.no_grad():
            draws += 1
        parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if parallel else 0
        return seeded(device, self.config.noise_seed, rank, int(draws))

    def _alpha(self) -> Tensor:
        alpha = cast(Tensor, self.step_size)
        if self.training and self.config.learn_step_size:
            # Outside the graph, in which a clamp would end its gradient for good.
            with torch.no_grad():
                alpha.clamp_(min=self.config.min_step_size)
        return alpha

    def _start(
        self,
        rows: Tensor,
        settings: Settings,
        initial_state: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The first state, [batch, candidates, time, V]."""
        std, width = self.config.initial_noise_std, self.vocab_projection.weight.shape[0]
        wide = torch.promote_types(self.vocab_projection.weight.dtype, torch.float32)
        count = settings.num_candidates
        if generator is not None:
            shape = (len(rows), count, rows.shape[1], width)
            z = std * torch.randn(shape, generator=generator, device=generator.device).to(rows.device, wide)
        else:
            z = torch.stack([self._starts(rows, width, 0, c) for c in range(count)], dim=1).to(wide) * std
        if initial_state is not None:
            k = len(initial_state)
            if count > 1 or k > len(z) or initial_state.shape[1:] != z.shape[2:]:
                raise ValueError(
                    f"initial_state must be [k <= {len(z)}, {z.shape[2]}, {z.shape[3]}] with one "
                    f"candidate, got {tuple(initial_state.shape)} with {count}"
                )
            z[len(z) - k :, 0] = initial_state.to(z)
        return z

    def _noise(self, rows: Tensor, generator: torch.Generator | None) -> Any:
        """noise(z, step) -> standard normal of the shape of z."""

        def draw(z: Tensor, step: int) -> Tensor:
            if generator is not None:
                return torch.randn(z.shape, generator=generator, device=generator.device).to(z)
            kinds = [self._starts(rows, z.shape[-1], 1, c, step) for c in range(z.shape[1])]
            return torch.stack(kinds, dim=1).to(z)

        return draw

    def _output(self, found: Descent, scored: bool, cache: Cache | None) -> EnergyCausalLMOutput:
        loss = None
        if scored:
            counted = found.losses if self.training and self.config.loss_on == "all" else found.losses[-1:]
            loss = torch.stack(list(counted)).mean()
        return EnergyCausalLMOutput(
            loss=loss,
            logits=found.logits,
            energies=found.energies,
            step_losses=_detached(found.losses) if scored else None,
            candidate_energies=found.candidate_energies,
            steps_taken=found.steps_taken,
            cache=cache,
        )


def _detached(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack([loss.detach() for loss in losses])


def _following(labels: Tensor) -> Tensor:
    """[batch x time] next tokens, -100 after the last.

    Labels move, not the logits: cutting those would copy the vocabulary, forwards and backwards.
    """
    return F.pad(labels[:, 1:], (0, 1), value=-100).flatten()


def _loss(logits: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
    """Cross-entropy of the next token; the mean over scored tokens, or the sum over `items`."""
    following = _following(labels).to(logits.device)
    total = F.cross_entropy(logits.flatten(0, 1), following, ignore_index=-100, reduction="sum")
    return total / ((labels[:, 1:] != -100).sum().clamp(min=1) if items is None else items)
