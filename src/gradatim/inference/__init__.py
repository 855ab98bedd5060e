"""How does it answer? Thinking, constrained decoding, search and prompting."""

from gradatim.inference.boolean_prompting import PromptedAnswers, prompted_answers

__all__ = [
    "PromptedAnswers",
    "StackedDescent",
    "StackedState",
    "ZeroShotPredictor",
    "descend_orders",
    "orders",
    "prompted_answers",
    "scope_parameters",
]
