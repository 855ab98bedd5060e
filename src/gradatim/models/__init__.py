"""What learns? Torch modules, PreTrainedModel and scikit-learn estimators."""

from gradatim.models.attention_descent import (
    AttentionDescent,
    LinearHead,
    QuadraticHead,
    ReLUHead,
    attention_gradient,
    train_attention,
)
from gradatim.models.boosted_head import BoostedHead
from gradatim.models.boosted_network import BoostedMLPClassifier, BoostedMLPRegressor
from gradatim.models.boosted_objectives import BoostingObjective, CrossEntropy, LogExponential, SquaredError
from gradatim.models.causal_lm import (
    CausalLMUnavailableError,
    causal_lm_digest,
    check_causal_lm,
    load_causal_lm,
    untrained_twin,
)
from gradatim.models.single_query_attention import SingleQueryAttention
from gradatim.models.text_encoder import (
    EncoderUnavailableError,
    check_text_encoder,
    encode_texts,
    encoder_digest,
    load_text_encoder,
)

__all__ = [
    "AttentionDescent",
    "BoostedHead",
    "BoostedMLPClassifier",
    "BoostedMLPRegressor",
    "BoostingObjective",
    "CausalLMUnavailableError",
    "CrossEntropy",
    "EncoderUnavailableError",
    "LinearHead",
    "LogExponential",
    "QuadraticHead",
    "ReLUHead",
    "SingleQueryAttention",
    "SquaredError",
    "attention_gradient",
    "causal_lm_digest",
    "check_causal_lm",
    "check_text_encoder",
    "encode_texts",
    "encoder_digest",
    "load_causal_lm",
    "load_text_encoder",
    "train_attention",
    "untrained_twin",
]
