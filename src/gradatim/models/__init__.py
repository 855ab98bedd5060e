"""What learns? Torch modules, PreTrainedModel and scikit-learn estimators."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradatim.models.attention_descent import (
    AttentionDescent,
    LinearHead,
    QuadraticHead,
    ReLUHead,
    attention_gradient,
    train_attention,
)
from gradatim.models.auto_registration import register_auto_classes, register_when_needed
from gradatim.models.boosted_head import BoostedHead
from gradatim.models.boosted_network import BoostedMLPClassifier, BoostedMLPRegressor
from gradatim.models.boosted_objectives import BoostingObjective, CrossEntropy, LogExponential, SquaredError
from gradatim.models.causal_embedder import causal_embedder, merge_adapters
from gradatim.models.causal_lm import (
    CausalLMUnavailableError,
    causal_lm_digest,
    causal_lm_source,
    check_causal_lm,
    load_causal_lm,
    untrained_twin,
)
from gradatim.models.context_programs import ContextProgram, Program, ridge_program, sgd_program
from gradatim.models.continuum_memory import ContinuumMemory
from gradatim.models.continuum_wrapper import wrap_mlps
from gradatim.models.conv_knrm import ConvKNRM
from gradatim.models.decoder import Decoder, KeyValueCache
from gradatim.models.delta_rule import DeltaRule
from gradatim.models.denoisers import DiffusionDenoiser, FeedForwardDenoiser
from gradatim.models.diffusion_transformer import DiffusionTransformer
from gradatim.models.embedding_ranker import EmbeddingRanker
from gradatim.models.energy_denoiser import EnergyDenoiser
from gradatim.models.energy_recipe import EnergyRecipe, ExtrapolatedStepsWarning
from gradatim.models.energy_regressor import EnergyRegressor
from gradatim.models.few_shot_classifier import FewShotClassifier
from gradatim.models.in_context_classifier import InContextClassifier
from gradatim.models.level_clocks import ContinuumState, LevelClocks
from gradatim.models.level_writer import LevelWriter
from gradatim.models.linear_self_attention import LinearSelfAttention
from gradatim.models.load_embedder import load_embedder
from gradatim.models.meta_sgd import MetaSGD, anil, fomaml, maml
from gradatim.models.meta_training import MetaTraining
from gradatim.models.prefix_encoding import encode_with_prefix
from gradatim.models.replay_buffer import ReplayBuffer
from gradatim.models.reranker_training import load_cross_encoder, rerank_run, score_run, train_reranker
from gradatim.models.run_blending import blend_run, choose_blend
from gradatim.models.self_modifying_memory import SelfModifyingMemory
from gradatim.models.single_query_attention import SingleQueryAttention
from gradatim.models.span_generator import byte_pair_tokenizer, train_span_generator
from gradatim.models.text_encoder import (
    EncoderUnavailableError,
    check_text_encoder,
    encode_texts,
    encoder_digest,
    load_text_encoder,
)

if TYPE_CHECKING:
    from gradatim.models.attention_free import InContextDSS, InContextHyena, InContextRetNet
    from gradatim.models.energy_config import EnergyTransformerConfig
    from gradatim.models.energy_transformer import EnergyCausalLMOutput, EnergyTransformerForCausalLM
    from gradatim.models.hope import HopeForCausalLM
    from gradatim.models.hope_config import HopeConfig
    from gradatim.models.in_context import InContextConfig, InContextModel, InContextTransformer
    from gradatim.models.in_context_recurrent import InContextGRU, InContextLSTM
    from gradatim.models.instruction_pooling import InstructionPooling
    from gradatim.models.linear_attention import LinearAttentionRegressor, LSAConfig
    from gradatim.models.lstm_config import LSTMConfig
    from gradatim.models.lstm_language_model import LSTMForCausalLM
    from gradatim.models.paragraph_vector import ParagraphVector
    from gradatim.models.sense_skip_gram import SenseSkipGram
    from gradatim.models.skip_gram import SkipGram

# What builds on Hugging Face's PreTrainedModel is imported when asked for: that import takes seconds.
_LAZY = {
    "EnergyCausalLMOutput": "energy_transformer",
    "EnergyTransformerConfig": "energy_config",
    "EnergyTransformerForCausalLM": "energy_transformer",
    "HopeConfig": "hope_config",
    "HopeForCausalLM": "hope",
    "InContextConfig": "in_context",
    "InContextDSS": "attention_free",
    "InContextGRU": "in_context_recurrent",
    "InContextHyena": "attention_free",
    "InContextLSTM": "in_context_recurrent",
    "InContextModel": "in_context",
    "InContextRetNet": "attention_free",
    "InContextTransformer": "in_context",
    "InstructionPooling": "instruction_pooling",
    "LSAConfig": "linear_attention",
    "LSTMConfig": "lstm_config",
    "LSTMForCausalLM": "lstm_language_model",
    "LinearAttentionRegressor": "linear_attention",
    "ParagraphVector": "paragraph_vector",
    "SenseSkipGram": "sense_skip_gram",
    "SkipGram": "skip_gram",
}

__all__ = [
    "AttentionDescent",
    "BoostedHead",
    "BoostedMLPClassifier",
    "BoostedMLPRegressor",
    "BoostingObjective",
    "CausalLMUnavailableError",
    "ContextProgram",
    "ContinuumMemory",
    "ContinuumState",
    "ConvKNRM",
    "CrossEntropy",
    "Decoder",
    "DeltaRule",
    "DiffusionDenoiser",
    "DiffusionTransformer",
    "EmbeddingRanker",
    "EncoderUnavailableError",
    "EnergyCausalLMOutput",
    "EnergyDenoiser",
    "EnergyRecipe",
    "EnergyRegressor",
    "EnergyTransformerConfig",
    "EnergyTransformerForCausalLM",
    "ExtrapolatedStepsWarning",
    "FeedForwardDenoiser",
    "FewShotClassifier",
    "HopeConfig",
    "HopeForCausalLM",
    "InContextClassifier",
    "InContextConfig",
    "InContextDSS",
    "InContextGRU",
    "InContextHyena",
    "InContextLSTM",
    "InContextModel",
    "InContextRetNet",
    "InContextTransformer",
    "InstructionPooling",
    "KeyValueCache",
    "LSAConfig",
    "LSTMConfig",
    "LSTMForCausalLM",
    "LevelClocks",
    "LevelWriter",
    "LinearAttentionRegressor",
    "LinearHead",
    "LinearSelfAttention",
    "LogExponential",
    "MetaSGD",
    "MetaTraining",
    "ParagraphVector",
    "Program",
    "QuadraticHead",
    "ReLUHead",
    "ReplayBuffer",
    "SelfModifyingMemory",
    "SenseSkipGram",
    "SingleQueryAttention",
    "SkipGram",
    "SquaredError",
    "anil",
    "attention_gradient",
    "blend_run",
    "byte_pair_tokenizer",
    "causal_embedder",
    "causal_lm_digest",
    "causal_lm_source",
    "check_causal_lm",
    "check_text_encoder",
    "choose_blend",
    "encode_texts",
    "encode_with_prefix",
    "encoder_digest",
    "fomaml",
    "load_causal_lm",
    "load_cross_encoder",
    "load_embedder",
    "load_text_encoder",
    "maml",
    "merge_adapters",
    "register_auto_classes",
    "rerank_run",
    "ridge_program",
    "score_run",
    "sgd_program",
    "train_attention",
    "train_reranker",
    "train_span_generator",
    "untrained_twin",
    "wrap_mlps",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gradatim.models.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_needed()
