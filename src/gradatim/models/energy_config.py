"""Sizes and switches of the language Energy-Based Transformer."""

from __future__ import annotations

from typing import Any

# Not from the top of `transformers`: this module is imported while that package's own tables are being built.
from transformers.configuration_utils import PreTrainedConfig

STEP_EMBEDDINGS = ("none", "prefix", "prediction", "adaln", "adaln_zero")
SECOND_ORDER = ("double_backward", "forward_over_reverse", "finite_difference")


class EnergyTransformerConfig(PreTrainedConfig):
    """Sizes and recipe of an `EnergyTransformerForCausalLM`; `system1()`, `system2()` are the paper's
    recipes.

    "Energy-Based Transformers are Scalable Learners and Thinkers" (Gladstone et al. 2025, arXiv 2507.02092).

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, max_position_embeddings,
            rms_norm_eps, rope_theta: as in `LlamaConfig`.
        intermediate_size: of the SwiGLU network; None means hidden_size, as in the paper.
        num_steps: steps of descent, M, in evaluation and (without a range) in training.
        num_steps_range: [least, most]: training draws M uniformly for every batch.
        step_size: alpha. learn_step_size: make it a parameter, kept at or above `min_step_size`.
        step_size_lr_multiplier: its learning rate in units of the others'; None means 3 * step_size.
        step_size_jitter: training draws alpha uniformly from [alpha / j, alpha * j] per token (1: never).
        langevin_noise_std: of the noise added to the state before every step in training.
        initial_noise_std: the state starts N(0, this^2); 0 starts at zeros.
        step_embedding: one landscape for all steps ("none") or one per step: a learned vector per step
            added to the predictions ("prediction"), as an extra first token ("prefix"), or modulating every
            block ("adaln"; "adaln_zero" starts as the identity with energy 0).
        loss_on: "all" averages the losses after every step, "last" takes that after the last one.
        detach_steps: states carry no gradient from one step to the next.
        truncate: only the last step enters the graph (needs loss_on="last").
        update_space: the gradient is taken with respect to the probabilities, and the new state is
            p - alpha dE/dp ("probability", the paper's), or to the logits, z - alpha dE/dz ("logit").
        second_order: how the derivative through a step is computed; all three agree. "finite_difference"
            needs first-order kernels alone, in float32 or wider.
        replay_capacity, replay_fraction: sequences that `replay_buffer()` holds (0: none), and how many of
            them a batch gets, as a share of its size.
        vocab_chunk: training meets the vocabulary by so many tokens at a time, in memory of vocab_chunk x
            vocab_size however many tokens a batch has, and returns no logits unless there is a replay
            buffer (0: all at once). Needs the update in probabilities, and states that are detached from
            step to step.
        noise_seed: of training noise where no generator is given, and of the fixed starts of inference.

    Raises ValueError for an unknown choice or an impossible size.
    """

    model_type = "gradatim_energy_transformer"
    keys_to_ignore_at_inference = ["cache"]  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 50277,
        hidden_size: int = 384,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 6,
        intermediate_size: int | None = None,
        max_position_embeddings: int = 256,
        num_steps: int = 2,
        num_steps_range: tuple[int, int] | list[int] | None = None,
        step_size: float = 500.0,
        learn_step_size: bool = True,
        step_size_lr_multiplier: float | None = None,
        step_size_jitter: float = 1.0,
        min_step_size: float = 1e-4,
        langevin_noise_std: float = 0.0,
        initial_noise_std: float = 1.0,
        step_embedding: str = "prefix",
        loss_on: str = "all",
        detach_steps: bool = True,
        truncate: bool = False,
        update_space: str = "probability",
        second_order: str = "double_backward",
        replay_capacity: int = 0,
        replay_fraction: float = 0.5,
        vocab_chunk: int = 0,
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 10_000.0,
        noise_seed: int = 0,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.intermediate_size = hidden_size if intermediate_size is None else intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.num_steps = num_steps
        self.num_steps_range = None if num_steps_range is None else list(num_steps_range)
        self.step_size, self.learn_step_size = float(step_size), learn_step_size
        self.step_size_lr_multiplier = (
            3.0 * step_size if step_size_lr_multiplier is None else step_size_lr_multiplier
        )
        self.step_size_jitter, self.min_step_size = step_size_jitter, min_step_size
        self.langevin_noise_std, self.initial_noise_std = langevin_noise_std, initial_noise_std
        self.step_embedding, self.loss_on = step_embedding, loss_on
        self.detach_steps, self.truncate = detach_steps, truncate
        self.update_space, self.second_order = update_space, second_order
        self.replay_capacity, self.replay_fraction = replay_capacity, replay_fraction
        self.vocab_chunk = vocab_chunk
        self.rms_norm_eps, self.rope_theta = rms_norm_eps, rope_theta
        self.noise_seed, self.use_cache = noise_seed, use_cache
        self.tie_word_embeddings = tie_word_embeddings
        self.pad_token_id, self.bos_token_id, self.eos_token_id = pad_token_id, bos_token_id, eos_token_id
        self._check()
        super().__init__(**kwargs)

    @property
    def max_trained_steps(self) -> int:
        """The most steps that training takes: the size of a step embedding's table."""
        return max(self.num_steps, *(self.num_steps_range or [1]))

    @property
    def shares_context(self) -> bool:
        """Whether the context is the same at every step, and so computed once."""
        return self.step_embedding in ("none", "prediction")

    @classmethod
    def system1(cls, **kwargs: Any) -> EnergyTransformerConfig:
        """The recipe of the scaling runs: two landscapes of one step each, a learned step size of 500."""
        recipe: dict[str, Any] = {"num_steps": 2, "step_size": 500.0, "step_embedding": "prefix"}
        return cls(**(recipe | kwargs))

    @classmethod
    def system2(cls, **kwargs: Any) -> EnergyTransformerConfig:
        """The thinking runs: one landscape, two or three steps of random size, noise, replay."""
        recipe: dict[str, Any] = {
            "num_steps": 3,
            "num_steps_range": (2, 3),
            "step_size": 5.0,
            "learn_step_size": False,
            "step_size_jitter": 2.0,
            "langevin_noise_std": 3.0,
            "step_embedding": "none",
            "loss_on": "last",
            "detach_steps": False,
            "truncate": True,
            "replay_capacity": 192,
        }
        return cls(**(recipe | kwargs))

    def _check(self) -> None:
        whole = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        for name in (*whole, "intermediate_size", "max_position_embeddings", "num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not give {self.num_attention_heads} heads of even size"
            )
        steps = self.num_steps_range
        if steps is not None and (len(steps) != 2 or not 1 <= steps[0] <= steps[1]):
            raise ValueError(f"num_steps_range must be (least, most) with 1 <= least <= most, got {steps}")
        for name in ("step_size", "min_step_size", "step_size_lr_multiplier", "rms_norm_eps", "rope_theta"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in (
            "langevin_noise_std",
            "initial_noise_std",
            "replay_capacity",
            "replay_fraction",
            "vocab_chunk",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.step_size_jitter >= 1:
            raise ValueError(f"step_size_jitter must be at least 1, got {self.step_size_jitter}")
        choices = {
            "step_embedding": STEP_EMBEDDINGS,
            "loss_on": ("all", "last"),
            "update_space": ("probability", "logit"),
            "second_order": SECOND_ORDER,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.truncate and self.loss_on == "all":
            raise ValueError('truncate leaves one step in the graph: it needs loss_on="last"')
        if self.vocab_chunk and not (
            self.update_space == "probability" and (self.detach_steps or self.truncate)
        ):
            raise ValueError(
                'vocab_chunk needs update_space="probability" and detach_steps=True (or truncate=True)'
            )
