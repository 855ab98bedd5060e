"""The lines that use the winner of `compare language`, and the folder that keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradatim.bench.study import Scale
from gradatim.compare.comparison import Winner
from gradatim.compare.language import shape_of
from gradatim.compare.language_arms import COUNTED, MODELS, settings_of
from gradatim.compare.language_source import tokenizer_of


def winner_code(won: Winner, scale: Scale, saved: Path | None = None) -> str:
    """Runnable Python: the saved model where there is one, else the untrained model with its optimizer."""
    if won.arm in COUNTED:
        return (
            "# Counts of short token sequences did best: at this budget no network is worth training.\n"
            "# Give more --steps or more text, or use any n-gram language model."
        )
    model = MODELS[won.arm]
    if saved is not None:
        return "\n".join(
            [
                f"from {model.module} import {model.model}",
                "from transformers import AutoTokenizer",
                "",
                f"tokenizer = AutoTokenizer.from_pretrained({str(saved)!r})",
                f"model = {model.model}.from_pretrained({str(saved)!r})",
                f'start = tokenizer({_start(scale)!r}, return_tensors="pt")',
                f"text = model.generate(**start, max_new_tokens={_longest(scale)}, do_sample=True)",
                "print(tokenizer.decode(text[0]))",
            ]
        )
    made = model.config if model.recipe is None else f"{model.config}.{model.recipe}"
    arguments = [f"    {name}={value!r}," for name, value in settings_of(won.arm, shape_of(scale)).items()]
    rate = won.settings["rate"]
    optimizer = f"torch.optim.AdamW(model.parameters(), lr={rate!r})"
    imports = ["import torch"]
    if won.arm.startswith("ebt"):
        optimizer = f"torch.optim.AdamW(model.param_groups({rate!r}))"
    elif won.arm == "hope":
        # The continuum memory's levels have clocks of their own.
        imports = ["from gradatim.compare.language_arms import make_optimizer"]
        optimizer = f"make_optimizer(model, {rate!r})"
    return "\n".join(
        [
            *imports,
            f"from {model.module} import {model.config}, {model.model}",
            "",
            f"config = {made}(",
            *arguments,
            ")",
            f"model = {model.model}(config)",
            f"optimizer = {optimizer}",
            "# --save FOLDER keeps the trained model with its tokenizer.",
        ]
    )


def save_model(model: Any, scale: Scale, folder: Path) -> None:
    """Weights, configuration and tokenizer in Hugging Face format."""
    from gradatim.models.quiet import quietly

    with quietly():
        model.save_pretrained(folder)
        tokenizer_of(scale).save_pretrained(folder)


def _start(scale: Scale) -> str:
    """A few characters to begin with that the tokens know; none of the user's own text."""
    if scale["tokens"] != "characters":
        return "The "
    known = tokenizer_of(scale).get_vocab()
    starts = ("The ", "the ", "a ", " ")
    # Of a text without spaces, whichever character comes first in order.
    return next(
        (start for start in starts if set(start) <= set(known)), min(known, key=lambda c: (known[c] == 0, c))
    )


def _longest(scale: Scale) -> int:
    """New tokens that fit beside a short start."""
    return max(1, min(200, int(scale["context"]) - 8))
