"""Loading a saved in-context learner, whichever of ours it is."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from transformers import PreTrainedModel

# By the class that wrote the folder, where the configuration names it, else by its model type.
MODULES = {
    "LinearAttentionRegressor": "gradatim.models.linear_attention",
    "InContextTransformer": "gradatim.models.in_context",
    "InContextLSTM": "gradatim.models.in_context_recurrent",
    "InContextGRU": "gradatim.models.in_context_recurrent",
    "InContextRetNet": "gradatim.models.attention_free",
    "InContextDSS": "gradatim.models.attention_free",
    "InContextHyena": "gradatim.models.attention_free",
}


def load_learner(folder: str | Path) -> PreTrainedModel:
    """The learner that `save_pretrained` wrote to `folder`, in evaluation mode.

    Its class comes from the configuration, its weights from safetensors only.

    Raises ValueError for a folder without a configuration or with one that is not of our learners.
    """
    folder = Path(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no config.json; give the folder that save_pretrained wrote")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        names = config.get("architectures") or []
    except (ValueError, AttributeError) as e:
        raise ValueError(f"{file} is not a JSON configuration: {e}") from e
    known = [name for name in names if name in MODULES]
    if not known:
        has = ", ".join(names) or "none"
        raise ValueError(f"{file} names no in-context learner of ours (architectures: {has})")
    learner = getattr(importlib.import_module(MODULES[known[0]]), known[0])
    model: PreTrainedModel = learner.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    return model.eval()
