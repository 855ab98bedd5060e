"""How does it answer? Thinking, constrained decoding, search and prompting."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradatim.inference.boolean_prompting import PromptedAnswers, prompted_answers
    from gradatim.inference.gradient_scopes import scope_parameters
    from gradatim.inference.gradient_text import EpochState, GradientPredictor
    from gradatim.inference.hamming import HammingIndex, hamming_distances
    from gradatim.inference.in_context_text import InContextPredictor, ZeroShotPredictor, orders
    from gradatim.inference.index_file import IndexFormatError
    from gradatim.inference.ngram_scoring import KeyScoring, score_documents
    from gradatim.inference.order_averaging import OrderAveragedLogits
    from gradatim.inference.order_descent import StackedState, descend_orders
    from gradatim.inference.seal_retriever import Hit, SEALRetriever
    from gradatim.inference.sharded_index import ShardedTokenIndex
    from gradatim.inference.stacked_descent import StackedDescent
    from gradatim.inference.substring_beams import Key, substring_beam_search
    from gradatim.inference.substring_processor import SubstringLogitsProcessor
    from gradatim.inference.thinking import (
        ThinkingCurve,
        Thought,
        think,
        thinking_curve,
        token_energies,
        token_losses,
    )
    from gradatim.inference.token_index import TokenIndex
    from gradatim.optim.energy_descent import EnergyTrace, minimize_energy

# All of it is imported when asked for: a search by words must not wait seconds for torch.
_LAZY = {
    "EnergyTrace": "optim.energy_descent",
    "EpochState": "inference.gradient_text",
    "GradientPredictor": "inference.gradient_text",
    "HammingIndex": "inference.hamming",
    "Hit": "inference.seal_retriever",
    "InContextPredictor": "inference.in_context_text",
    "IndexFormatError": "inference.index_file",
    "Key": "inference.substring_beams",
    "KeyScoring": "inference.ngram_scoring",
    "OrderAveragedLogits": "inference.order_averaging",
    "PromptedAnswers": "inference.boolean_prompting",
    "SEALRetriever": "inference.seal_retriever",
    "ShardedTokenIndex": "inference.sharded_index",
    "StackedDescent": "inference.stacked_descent",
    "StackedState": "inference.order_descent",
    "SubstringLogitsProcessor": "inference.substring_processor",
    "ThinkingCurve": "inference.thinking",
    "Thought": "inference.thinking",
    "TokenIndex": "inference.token_index",
    "ZeroShotPredictor": "inference.in_context_text",
    "descend_orders": "inference.order_descent",
    "hamming_distances": "inference.hamming",
    "minimize_energy": "optim.energy_descent",
    "orders": "inference.in_context_text",
    "prompted_answers": "inference.boolean_prompting",
    "scope_parameters": "inference.gradient_scopes",
    "score_documents": "inference.ngram_scoring",
    "substring_beam_search": "inference.substring_beams",
    "think": "inference.thinking",
    "thinking_curve": "inference.thinking",
    "token_energies": "inference.thinking",
    "token_losses": "inference.thinking",
}

__all__ = [
    "EnergyTrace",
    "EpochState",
    "GradientPredictor",
    "HammingIndex",
    "Hit",
    "InContextPredictor",
    "IndexFormatError",
    "Key",
    "KeyScoring",
    "OrderAveragedLogits",
    "PromptedAnswers",
    "SEALRetriever",
    "ShardedTokenIndex",
    "StackedDescent",
    "StackedState",
    "SubstringLogitsProcessor",
    "ThinkingCurve",
    "Thought",
    "TokenIndex",
    "ZeroShotPredictor",
    "descend_orders",
    "hamming_distances",
    "minimize_energy",
    "orders",
    "prompted_answers",
    "scope_parameters",
    "score_documents",
    "substring_beam_search",
    "think",
    "thinking_curve",
    "token_energies",
    "token_losses",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gradatim.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
