"""Opening a saved `SentenceTransformer` that holds modules of ours, without trusting any other code.

sentence-transformers opens a folder with foreign module classes only with trust_remote_code=True, which would
also run code that the folder names. Here only the library's own classes and ours are opened.
"""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

OURS = ("gradatim.models.instruction_pooling.InstructionPooling",)
LIBRARY = "sentence_transformers."


def load_embedder(folder: str | Path, device: str | None = "cpu") -> SentenceTransformer:
    """The encoder in `folder`, as `SentenceTransformer.save` wrote it, with its prompts.

    Raises ValueError for a folder that is not one, or that names other classes than the library's and ours.
    """
    from sentence_transformers import SentenceTransformer

    folder = Path(folder)
    try:
        entries = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        settings = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))
        named = [(str(e["name"]), str(e["type"]), str(e["path"])) for e in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no saved sentence encoder ({type(error).__name__}: {error})") from None
    modules: OrderedDict[str, Any] = OrderedDict()
    for name, kind, path in named:
        if not (kind in OURS or kind.startswith(LIBRARY)):
            raise ValueError(f"{folder} names the class {kind}, which is neither the library's nor ours")
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"{folder} names the folder {path!r} outside itself")
        home, _, cls = kind.rpartition(".")
        modules[name] = getattr(importlib.import_module(home), cls).load(
            str(folder), subfolder=path, local_files_only=True
        )
    return SentenceTransformer(
        modules=modules,  # type: ignore[arg-type]
        device=device,
        prompts=settings.get("prompts"),
        default_prompt_name=settings.get("default_prompt_name"),
        similarity_fn_name=settings.get("similarity_fn_name"),
    )
