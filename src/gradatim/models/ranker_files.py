"""A ranker's folder: config.json, model.safetensors and the tokenizer's own files; nothing pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

_KIND = "gradatim.ConvKNRM"
_VERSION = 1


def write_ranker(
    folder: Path, options: Mapping[str, Any], tensors: Mapping[str, Tensor], tokenizer: Any
) -> None:
    """Writes the three parts; an existing ranker in the folder is replaced."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / "model.safetensors"
    )
    document = {"kind": _KIND, "version": _VERSION, "options": dict(options)}
    (folder / "config.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder / "tokenizer")


def read_ranker(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], Any]:
    """Options, tensors and tokenizer; raises ValueError that names the file and what is wrong with it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    file = folder / "config.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} could not be read ({error}); give a folder from save_pretrained") from error
    if not isinstance(document, dict) or document.get("kind") != _KIND:
        raise ValueError(f"{file} describes no ConvKNRM; give a folder from save_pretrained")
    if document.get("version") != _VERSION or not isinstance(document.get("options"), dict):
        raise ValueError(f"{file} has version {document.get('version')!r}; this release reads {_VERSION}")
    try:
        tensors = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / 'model.safetensors'} could not be read ({error})") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder / 'tokenizer'} holds no tokenizer ({reason})") from error
    return document["options"], tensors, tokenizer
