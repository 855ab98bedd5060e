"""What did it learn? Measurements on any model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradatim.probes.attention_alignment import directional_alignment, effective_rank
from gradatim.probes.attention_direction import HeadAlignment, HeadDirections, attention_direction
from gradatim.probes.attention_equivalence import SVMEquivalence, svm_equivalence
from gradatim.probes.attention_scores import AttentionScores, attention_scores, repeated_prompts
from gradatim.probes.attention_selection import (
    SelectionQuality,
    locally_optimal,
    selected_tokens,
    selection_quality,
    token_scores,
)
from gradatim.probes.attention_svm import AttentionSVMResult, InfeasibleError, attention_svm
from gradatim.probes.attention_svm_estimator import AttentionSVM
from gradatim.probes.boolean_bayes import TernaryBayes
from gradatim.probes.boolean_classifiers import EliminationClassifier, GF2Classifier, TernaryBayesClassifier
from gradatim.probes.boolean_feed_forward import FeedForwardGD
from gradatim.probes.boolean_measures import PromptScores, score_prompts
from gradatim.probes.boolean_references import (
    Elimination,
    GF2Elimination,
    NearestNeighbours,
    Null,
    SignAveraging,
)
from gradatim.probes.compute import count_flops
from gradatim.probes.context_alignment import Alignment, OODCurve, alignment, ood_curve, sensitivity
from gradatim.probes.context_measures import (
    forgetting,
    mspd,
    similarity_of_errors,
    similarity_of_weights,
    span_residual,
    spd,
)
from gradatim.probes.curvature import Curvature, curvature
from gradatim.probes.distribution_overlap import (
    Comparison,
    compare,
    compare_distributions,
    overlap_cosine,
    token_overlap,
    union_cosine,
)
from gradatim.probes.identification import Identification, LayerMatch, Match
from gradatim.probes.identify import identify
from gradatim.probes.induced_weights import InducedWeights, ilwd, induced_weights, linearity_r2
from gradatim.probes.krylov_algorithms import BFGS, LBFGS, ConjugateGradient
from gradatim.probes.layer_readout import LayerReadout
from gradatim.probes.loss_landscape import (
    LandscapeSlice,
    PathShape,
    filter_normalized,
    landscape_slice,
    path_shape,
    random_slices,
)
from gradatim.probes.nested_levels import NestedLevel, NestedLevels, nested_levels
from gradatim.probes.order_sensitivity import OrderSensitivity, RunningSpread, order_sensitivity
from gradatim.probes.position_probe import (
    PositionAttentionProbe,
    PositionProbes,
    context_moment,
    fit_position_probes,
)
from gradatim.probes.reference_algorithms import (
    Averaging,
    BayesLinear,
    GradientDescent,
    GradientDescentPlusPlus,
    GradientFlow,
    IterativeNewton,
    KernelFilter,
    LeastSquares,
    Ridge,
    Zero,
)
from gradatim.probes.reference_regressors import (
    AveragingRegressor,
    BayesLinearRegressor,
    BFGSRegressor,
    ConjugateGradientRegressor,
    GradientDescentPlusPlusRegressor,
    GradientDescentRegressor,
    GradientFlowRegressor,
    KernelFilterRegressor,
    KernelGradientDescentRegressor,
    KNeighborsReferenceRegressor,
    LBFGSRegressor,
    LeastSquaresRegressor,
    NewtonSchulzRegressor,
    OnlineGradientDescentRegressor,
    PreconditionedGradientDescentRegressor,
    RidgeReferenceRegressor,
)
from gradatim.probes.reference_tuning import (
    expected_loss,
    fit_gd_plus_plus,
    fit_gradient_descent,
    optimal_gd_lr,
    tune,
)
from gradatim.probes.representation_similarity import (
    RepresentationSimilarity,
    linear_cka,
    representation_similarity,
    rsa,
)
from gradatim.probes.sequential_algorithms import (
    KernelGradientDescent,
    KNeighbors,
    OnlineGradientDescent,
    PreconditionedGradientDescent,
)
from gradatim.probes.spectral import ContextSpectra, Predictor, SpectralPredictor, sweep
from gradatim.probes.step_matching import (
    BestMatch,
    Trend,
    best_match,
    convergence_rates,
    matching_trend,
    unsaturated,
)
from gradatim.probes.update_similarity import UpdateSimilarity, update_similarity
from gradatim.probes.weight_sparsity import weight_sparsity

if TYPE_CHECKING:
    from gradatim.probes.layer_products import LearnedRates, interpolate, learned_rates, repeated_losses

# What needs Hugging Face's PreTrainedModel is imported when asked for: that import takes seconds.
_LAZY = {
    "LearnedRates": "layer_products",
    "interpolate": "layer_products",
    "learned_rates": "layer_products",
    "repeated_losses": "layer_products",
}

__all__ = [
    "BFGS",
    "LBFGS",
    "Alignment",
    "AttentionSVM",
    "AttentionSVMResult",
    "AttentionScores",
    "Averaging",
    "AveragingRegressor",
    "BFGSRegressor",
    "BayesLinear",
    "BayesLinearRegressor",
    "BestMatch",
    "Comparison",
    "ConjugateGradient",
    "ConjugateGradientRegressor",
    "ContextSpectra",
    "Curvature",
    "Elimination",
    "EliminationClassifier",
    "FeedForwardGD",
    "GF2Classifier",
    "GF2Elimination",
    "GradientDescent",
    "GradientDescentPlusPlus",
    "GradientDescentPlusPlusRegressor",
    "GradientDescentRegressor",
    "GradientFlow",
    "GradientFlowRegressor",
    "HeadAlignment",
    "HeadDirections",
    "Identification",
    "InducedWeights",
    "InfeasibleError",
    "IterativeNewton",
    "KNeighbors",
    "KNeighborsReferenceRegressor",
    "KernelFilter",
    "KernelFilterRegressor",
    "KernelGradientDescent",
    "KernelGradientDescentRegressor",
    "LBFGSRegressor",
    "LandscapeSlice",
    "LayerMatch",
    "LayerReadout",
    "LearnedRates",
    "LeastSquares",
    "LeastSquaresRegressor",
    "Match",
    "NearestNeighbours",
    "NestedLevel",
    "NestedLevels",
    "NewtonSchulzRegressor",
    "Null",
    "OODCurve",
    "OnlineGradientDescent",
    "OnlineGradientDescentRegressor",
    "OrderSensitivity",
    "PathShape",
    "PositionAttentionProbe",
    "PositionProbes",
    "PreconditionedGradientDescent",
    "PreconditionedGradientDescentRegressor",
    "Predictor",
    "PromptScores",
    "RepresentationSimilarity",
    "Ridge",
    "RidgeReferenceRegressor",
    "RunningSpread",
    "SVMEquivalence",
    "SelectionQuality",
    "SignAveraging",
    "SpectralPredictor",
    "TernaryBayes",
    "TernaryBayesClassifier",
    "Trend",
    "UpdateSimilarity",
    "Zero",
    "alignment",
    "attention_direction",
    "attention_scores",
    "attention_svm",
    "best_match",
    "compare",
    "compare_distributions",
    "context_moment",
    "convergence_rates",
    "count_flops",
    "curvature",
    "directional_alignment",
    "effective_rank",
    "expected_loss",
    "filter_normalized",
    "fit_gd_plus_plus",
    "fit_gradient_descent",
    "fit_position_probes",
    "forgetting",
    "identify",
    "ilwd",
    "induced_weights",
    "interpolate",
    "landscape_slice",
    "learned_rates",
    "linear_cka",
    "linearity_r2",
    "locally_optimal",
    "matching_trend",
    "mspd",
    "nested_levels",
    "ood_curve",
    "optimal_gd_lr",
    "order_sensitivity",
    "overlap_cosine",
    "path_shape",
    "random_slices",
    "repeated_losses",
    "repeated_prompts",
    "representation_similarity",
    "rsa",
    "score_prompts",
    "selected_tokens",
    "selection_quality",
    "sensitivity",
    "similarity_of_errors",
    "similarity_of_weights",
    "span_residual",
    "spd",
    "svm_equivalence",
    "sweep",
    "token_overlap",
    "token_scores",
    "tune",
    "union_cosine",
    "unsaturated",
    "update_similarity",
    "weight_sparsity",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gradatim.probes.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
