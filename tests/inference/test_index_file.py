"""Index files: what is written comes back, and nothing that is in a file can crash the reader."""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import pytest

from gradatim.inference import IndexFormatError, TokenIndex
from gradatim.inference.index_file import MAGIC, read_index, write_index

FORMS = ("fast", "compact")


def corpus(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 30, rng.integers(1, 25)).tolist() for _ in range(12)]


def saved(path, memory, labels=True):
    documents = corpus()
    names = [f"file {i} ü" for i in range(12)] if labels else None
    index = TokenIndex.build(documents, labels=names, vocab_size=40, eod=35, memory=memory)
    index.save(path)
    return documents, index


def answers(index):
    """Every kind of answer that an index gives, as plain lists."""
    out = [index.n_tokens, index.n_documents, index.eod, index.vocab_size]
    out.append(list(index.labels) if index.labels is not None else None)
    for doc in range(min(index.n_documents, 40)):
        out.append(index.tokens(doc).tolist())
    firsts = [tuple(tokens[:3]) for tokens in out[5:9]]
    for ngram in [(), (1,), (2, 3), (35,), (35, 4), *firsts, (29, 29), (39,)]:
        found = index.follow(ngram)
        out.append([found.count, found.next_tokens.tolist(), found.next_counts.tolist()])
        docs, places = index.occurrences(found.lo, found.hi, len(ngram))
        out.append(sorted(zip(docs.tolist(), places.tolist(), strict=True)))
        assert all(0 <= doc < index.n_documents for doc in docs)
        assert all(0 <= token < index.vocab_size for token in found.next_tokens)
    return out


@pytest.mark.parametrize("memory", FORMS)
@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_gives_the_same_answers(tmp_path, memory, mmap):
    _, index = saved(tmp_path / "x.idx", memory)
    for verify in (True, False):
        again = TokenIndex.load(tmp_path / "x.idx", mmap=mmap, verify=verify)
        assert answers(again) == answers(index)
        assert again.memory == memory
    plain = TokenIndex.build(corpus(), vocab_size=40, eod=35, memory=memory, path=tmp_path / "deep" / "y.idx")
    assert plain.labels is None
    assert (tmp_path / "deep" / "y.idx").is_file()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    plain.append([[1, 2]], path=tmp_path / "z.idx")
    assert TokenIndex.load(tmp_path / "z.idx").n_documents == 13


def test_a_file_that_is_replaced_stays_readable_where_it_is_mapped(tmp_path):
    _, index = saved(tmp_path / "x.idx", "fast")
    mapped = TokenIndex.load(tmp_path / "x.idx")
    TokenIndex.build([[1]]).save(tmp_path / "x.idx")
    assert answers(mapped) == answers(index)


def test_what_is_no_index_is_named(tmp_path):
    with pytest.raises(FileNotFoundError):
        TokenIndex.load(tmp_path / "none")
    for content, message in (
        (b"", "no token index"),
        (b"PK\x03\x04" + bytes(100), "no token index"),
        (MAGIC + bytes(10), "no token index"),
        (MAGIC + struct.pack("<II32s", 9, 4, b""), "format version 9, this release reads 1"),
        (MAGIC + struct.pack("<II32s", 1, 2**31, b""), "a header of 2147483648 bytes"),
    ):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(IndexFormatError, match=message):
            TokenIndex.load(tmp_path / "bad")
    for header in (
        b"[" * 100_000,
        b"{}",
        b'{"meta": 1, "arrays": {}}',
        b"\xff",
        b'{"meta":{},"arrays":{"a":3}}',
    ):
        blob = MAGIC + struct.pack("<II32s", 1, len(header), hashlib.sha256(header).digest()) + header
        (tmp_path / "bad").write_bytes(blob)
        with pytest.raises(IndexFormatError, match="header cannot be read"):
            TokenIndex.load(tmp_path / "bad")


@pytest.mark.parametrize("memory", FORMS)
def test_a_file_cut_off_anywhere_is_refused(tmp_path, memory):
    saved(tmp_path / "x.idx", memory)
    whole = (tmp_path / "x.idx").read_bytes()
    rng = np.random.default_rng(0)
    for length in [*rng.integers(0, len(whole), 40).tolist(), len(whole) - 1]:
        (tmp_path / "cut").write_bytes(whole[:length])
        for verify in (True, False):
            with pytest.raises(IndexFormatError):
                TokenIndex.load(tmp_path / "cut", verify=verify)


def test_a_symbol_of_no_token_is_named(tmp_path):
    saved(tmp_path / "x.idx", "fast")
    meta, arrays = read_index(tmp_path / "x.idx")
    text = np.array(arrays["text"])
    for symbol in (0, len(arrays["alphabet"]) + 1, 2**16 - 1):
        text[1] = symbol  # the first token of the first document
        write_index(tmp_path / "forged", meta, {**arrays, "text": text})
        with pytest.raises(IndexFormatError, match="symbol of no token"):
            TokenIndex.load(tmp_path / "forged").tokens(0)


def forge(meta, arrays, rng):
    """One well-formed file that says something else: a forger has good checksums."""
    meta, arrays = dict(meta), dict(arrays)
    for _ in range(int(rng.integers(1, 4))):
        name = str(rng.choice(list(arrays)))
        kind = rng.integers(6)
        array = np.array(arrays[name])
        if kind == 0:
            meta[str(rng.choice(list(meta)))] = [0, 1, -1, 2**31, 2**62, "x", None, True, 3.5, [1]][
                rng.integers(10)
            ]
        elif kind == 1 and len(array):
            info = np.iinfo(array.dtype)
            at = rng.integers(0, len(array), int(rng.integers(1, 6)))
            array[at] = rng.choice(
                np.array([info.min, info.max, info.max - 1, 0, 1, 2, 63, 64, 65], dtype=array.dtype)
            )
            arrays[name] = array
        elif kind == 2 and len(array):
            arrays[name] = array[: int(rng.integers(0, len(array)))]
        elif kind == 3:
            arrays[name] = array.astype(rng.choice(["<u2", "<u4", "<i4", "<i8", "|u1", "<u8"]))
        elif kind == 4 and len(array):
            raw = bytearray(array.tobytes())
            for at in rng.integers(0, len(raw), int(rng.integers(1, 20))):
                raw[at] = int(rng.integers(256))
            arrays[name] = np.frombuffer(bytes(raw), array.dtype)
        elif kind == 5 and rng.random() < 0.5:
            arrays.pop(name)
        else:
            arrays[name] = np.concatenate([array, array])[rng.permutation(len(array))]
        if not arrays:
            break
    return meta, arrays


def mutants(path, number, seed):
    """Byte flips of a file, and forged files whose checksums are right."""
    rng = np.random.default_rng(seed)
    whole = path.read_bytes()
    meta, arrays = read_index(path)
    target = path.with_name("mutant")
    for i in range(number):
        if i % 2:
            write_index(target, *forge(meta, arrays, rng))
            yield target, (True, False)
        else:
            raw = bytearray(whole)
            for at in rng.integers(0, len(raw) if rng.random() < 0.7 else 900, int(rng.integers(1, 30))):
                raw[at] = int(rng.integers(256))
            target.write_bytes(raw)
            yield target, (True, False)


def attack(path, number, seed):
    """How many mutants were refused, answered as the original, and answered otherwise; any crash kills us."""
    expected = answers(TokenIndex.load(path))
    messages: list[str] = []
    same = other = 0
    original = path.read_bytes()
    for i, (target, settings) in enumerate(mutants(path, number, seed)):
        for verify in settings:
            try:
                found = answers(TokenIndex.load(target, verify=verify, mmap=bool(i % 4)))
            except IndexFormatError as error:
                messages.append(str(error))
                continue
            same += found == expected
            other += found != expected
            if verify and i % 2 == 0 and target.read_bytes() != original:
                # A flipped byte may go unseen only in the padding between arrays.
                assert found == expected
    assert all(0 < len(message) < 300 and "\n" not in message for message in messages)
    return len(messages), same, other


@pytest.mark.parametrize("memory", FORMS)
def test_mutated_files_are_refused_or_harmless(tmp_path, memory):
    saved(tmp_path / "x.idx", memory)
    refused, _, _ = attack(tmp_path / "x.idx", 150, seed=1)
    assert refused > 150


@pytest.mark.slow
@pytest.mark.parametrize("memory", FORMS)
@pytest.mark.parametrize("seed", range(5))
def test_ten_thousand_mutated_files(tmp_path, memory, seed):
    saved(tmp_path / "x.idx", memory, labels=seed != 0)
    refused, same, other = attack(tmp_path / "x.idx", 1_000, seed=100 + seed)
    assert refused + same + other == 2_000


def test_header_keeps_no_secrets_and_is_plain_json(tmp_path):
    saved(tmp_path / "x.idx", "fast")
    raw = (tmp_path / "x.idx").read_bytes()
    length = struct.unpack_from("<I", raw, 12)[0]
    header = json.loads(raw[48 : 48 + length])
    assert set(header) == {"meta", "arrays"}
    assert str(tmp_path) not in raw.decode("latin-1")
    assert all(entry["offset"] % 64 == 0 for entry in header["arrays"].values())


def test_arrays_of_other_kinds_are_not_written(tmp_path):
    with pytest.raises(TypeError, match="float64"):
        write_index(tmp_path / "x", {}, {"a": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []
