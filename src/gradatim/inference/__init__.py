"""How does it answer? Thinking, constrained decoding, search and prompting."""

from gradatim.inference.boolean_prompting import PromptedAnswers, prompted_answers
from gradatim.inference.gradient_scopes import scope_parameters
from gradatim.inference.gradient_text import EpochState, GradientPredictor
from gradatim.inference.in_context_text import InContextPredictor, ZeroShotPredictor, orders
from gradatim.inference.order_averaging import OrderAveragedLogits
from gradatim.inference.order_descent import StackedState, descend_orders
from gradatim.inference.stacked_descent import StackedDescent
from gradatim.inference.thinking import (
    ThinkingCurve,
    Thought,
    think,
    thinking_curve,
    token_energies,
    token_losses,
)
from gradatim.optim.energy_descent import EnergyTrace, minimize_energy

__all__ = [
    "EnergyTrace",
    "EpochState",
    "GradientPredictor",
    "InContextPredictor",
    "OrderAveragedLogits",
    "PromptedAnswers",
    "StackedDescent",
    "StackedState",
    "ThinkingCurve",
    "Thought",
    "ZeroShotPredictor",
    "descend_orders",
    "minimize_energy",
    "orders",
    "prompted_answers",
    "scope_parameters",
    "think",
    "thinking_curve",
    "token_energies",
    "token_losses",
]
