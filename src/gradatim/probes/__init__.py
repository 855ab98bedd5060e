"""What did it learn? Measurements on any model."""

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
from gradatim.probes.identification import Identification, LayerMatch, Match
from gradatim.probes.identify import identify
from gradatim.probes.krylov_algorithms import BFGS, LBFGS, ConjugateGradient
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
from gradatim.probes.reference_tuning import (
    expected_loss,
    fit_gd_plus_plus,
    fit_gradient_descent,
    optimal_gd_lr,
    tune,
)
from gradatim.probes.sequential_algorithms import (
    KernelGradientDescent,
    KNeighbors,
    OnlineGradientDescent,
    PreconditionedGradientDescent,
)
from gradatim.probes.spectral import ContextSpectra, Predictor, SpectralPredictor, sweep

__all__ = [
    "BFGS",
    "LBFGS",
    "AttentionSVM",
    "AttentionSVMResult",
    "AttentionScores",
    "Averaging",
    "BayesLinear",
    "ConjugateGradient",
    "ContextSpectra",
    "Elimination",
    "EliminationClassifier",
    "FeedForwardGD",
    "GF2Classifier",
    "GF2Elimination",
    "GradientDescent",
    "GradientDescentPlusPlus",
    "GradientFlow",
    "HeadAlignment",
    "HeadDirections",
    "Identification",
    "InfeasibleError",
    "IterativeNewton",
    "KNeighbors",
    "KernelFilter",
    "KernelGradientDescent",
    "LayerMatch",
    "LeastSquares",
    "Match",
    "NearestNeighbours",
    "Null",
    "OnlineGradientDescent",
    "PreconditionedGradientDescent",
    "Predictor",
    "PromptScores",
    "Ridge",
    "SVMEquivalence",
    "SelectionQuality",
    "SignAveraging",
    "SpectralPredictor",
    "TernaryBayes",
    "TernaryBayesClassifier",
    "Zero",
    "attention_direction",
    "attention_scores",
    "attention_svm",
    "directional_alignment",
    "effective_rank",
    "expected_loss",
    "fit_gd_plus_plus",
    "fit_gradient_descent",
    "identify",
    "locally_optimal",
    "optimal_gd_lr",
    "repeated_prompts",
    "score_prompts",
    "selected_tokens",
    "selection_quality",
    "svm_equivalence",
    "sweep",
    "token_scores",
    "tune",
]
