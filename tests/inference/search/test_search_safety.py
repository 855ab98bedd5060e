"""Damaged and hostile index folders give one clear line or a right answer, never a crash."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
from folders import make_folder, put
from mutations import mutated

from gradatim.inference import IndexFormatError
from gradatim.inference.search import (
    FolderIndex,
    IndexDamagedError,
    IndexSettings,
    SearchError,
    build_index,
    seal_building,
)
from gradatim.inference.search import seal as seal_search
from gradatim.inference.search.files import parts_below

QUESTION = "matrix norm of a sample"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small index with two shards and binary codes, and its answers."""
    home = tmp_path_factory.mktemp("safety")
    folder = make_folder(home / "docs", 6)
    put(folder / "ü.md", "# Über\n\nmatrix words 行列")
    build_index(folder, home / "ix", IndexSettings(methods=("binary",), bits=32, shards=2))
    return home / "ix"


def ask(index):
    """Answers of every method; only a SearchError may come out."""
    opened = FolderIndex(index)
    return [
        [(h.file, h.text, h.score) for h in opened.search(QUESTION, 5, method).hits]
        for method in ("bm25", "binary")
    ]


def parts(index):
    return sorted(p for p in index.rglob("*") if p.is_file() and p.name != ".lock")


def one_line(error):
    assert "\n" not in str(error)
    assert len(str(error)) < 600


def test_every_flipped_byte_is_noticed_or_harmless(good, tmp_path):
    expected = ask(good)
    index = tmp_path / "ix"
    shutil.copytree(good, index)
    rng = random.Random(0)
    refused = 0
    files = parts(index)
    assert len(files) > 15
    for turn in range(120):
        path = files[turn % len(files)]
        whole = path.read_bytes()
        data = bytearray(whole)
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
        try:
            assert ask(index) == expected
        except SearchError as error:
            one_line(error)
            refused += 1
        path.write_bytes(whole)
    assert refused > 80
    assert ask(index) == expected


def test_cut_empty_missing_and_swapped_files(good, tmp_path):
    index = tmp_path / "ix"
    shutil.copytree(good, index)
    expected = ask(index)
    for path in parts(index):
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", whole + b"\0", b"\x00" * len(whole)):
            if damaged == whole:
                continue
            path.write_bytes(damaged)
            try:
                assert ask(index) == expected
            except SearchError as error:
                one_line(error)
            path.write_bytes(whole)
        path.unlink()
        try:
            assert ask(index) == expected
        except SearchError as error:
            one_line(error)
        path.mkdir()
        try:
            assert ask(index) == expected
        except SearchError as error:
            one_line(error)
        path.rmdir()
        path.write_bytes(whole)


def reseal(index):
    """Make the manifest agree with whatever the files hold now, as an attacker would."""
    manifest = json.loads((index / "manifest.json").read_text())
    manifest["parts"] = parts_below(index / manifest["generation"])
    (index / "manifest.json").write_text(json.dumps(manifest))


def test_hostile_files_with_matching_checksums(good, tmp_path):
    """Checksums find accidents; whoever makes the index makes them too. Then bounds must hold."""
    index = tmp_path / "ix"
    shutil.copytree(good, index)
    rng = random.Random(1)
    files = [p for p in parts(index) if p.name != "manifest.json"]
    answered = refused = 0
    for turn in range(120):
        path = files[turn % len(files)]
        whole = path.read_bytes()
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 4, 40))):
            if data:
                data[rng.randrange(len(data))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        path.write_bytes(bytes(data[: rng.choice((len(data), len(data), len(data) // 2))]))
        reseal(index)
        try:
            ask(index)
            answered += 1
        except SearchError as error:
            one_line(error)
            refused += 1
        path.write_bytes(whole)
    assert answered > 10
    assert refused > 10


METHODS_OF = {
    "generator": ("seal",),
    "tokens.index": ("seal",),
    "code-model": ("binary",),
    "codes": ("binary",),
}


@pytest.fixture(scope="module")
def with_seal(tmp_path_factory):
    """A small index with a generator of few steps."""
    home = tmp_path_factory.mktemp("seal")
    folder = make_folder(home / "docs", 6)
    put(folder / "ü.md", "# Über\n\nmatrix words 行列")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seal_building, "FEWEST_STEPS", 10)
        patch.setattr(seal_building, "VOCABULARY", 400)
        build_index(folder, home / "ix", IndexSettings(methods=("binary", "seal"), bits=32, shards=2))
    return home / "ix"


@pytest.mark.slow
@pytest.mark.parametrize("piece", range(20))
def test_ten_thousand_mutations(with_seal, tmp_path, monkeypatch, piece):
    """Each in turn, most with matching checksums: an answer or a SearchError of one line by every method."""
    index = tmp_path / "ix"
    shutil.copytree(with_seal, index)
    files = parts(index)
    sealed = (index / "manifest.json").read_bytes()
    expected = {method: answer(index, method) for method in ("bm25", "binary", "seal")}
    generators = seal_building.load_generator(str(next(index.glob("g*/shared/generator"))))
    load = seal_building.load_generator
    for turn in range(500 * piece, 500 * (piece + 1)):
        path, rng = files[turn % len(files)], random.Random(turn)
        name, whole = path.relative_to(index).as_posix(), path.read_bytes()
        damaged = mutated(path, rng)
        path.write_bytes(damaged)
        manifest = path.name == "manifest.json"
        forged = turn % 4 > 0 and not manifest
        if forged:
            reseal(index)
        own = "generator" in name or manifest  # else the generator is as it was: opened once
        monkeypatch.setattr(seal_search, "load_generator", load if own else lambda _: generators)
        for method in next((m for part, m in METHODS_OF.items() if part in name), tuple(expected)):
            try:
                found = answer(index, method)
            except SearchError as error:
                one_line(error)
                continue
            assert forged or manifest or found == expected[method]
        path.write_bytes(whole)
        (index / "manifest.json").write_bytes(sealed)


def answer(index, method):
    return [(h.file, h.text, h.score) for h in FolderIndex(index).search(QUESTION, 5, method).hits]


@pytest.mark.parametrize(
    "error",
    [
        IndexFormatError("the index is damaged: it holds a symbol of no token; build it again"),
        TypeError("'>' not supported\nbetween 'int' and 'list'"),
    ],
)
def test_what_fails_while_seal_answers_is_damage(error):
    """Found by mutation: a token index and a tokenizer's settings that fail at the first question only."""

    class Broken:
        def search_documents(self, queries, k):
            raise error

    seal = object.__new__(seal_search.SealSearch)
    seal._retriever = Broken()
    with pytest.raises(IndexDamagedError, match="cannot be used") as caught:
        seal("question", 5)
    one_line(caught.value)


def array_attacks(path):
    """Well-formed arrays of the right type that point elsewhere."""
    array = np.load(path)
    for value in (-1, 2**31 - 1, -(2**31), 10**9):
        wrong = array.copy()
        if wrong.dtype.kind == "i" and len(wrong):
            wrong[len(wrong) // 2 :] = np.array(value).astype(wrong.dtype)
            yield wrong
    yield array[:0]
    yield array[::-1]
    yield array.astype(">i4")
    yield np.asfortranarray(np.stack([array.ravel()] * 2))


def test_arrays_that_point_outside(good, tmp_path):
    index = tmp_path / "ix"
    shutil.copytree(good, index)
    for path in [p for p in parts(index) if p.suffix == ".npy"]:
        whole = path.read_bytes()
        for wrong in array_attacks(path):
            np.save(path, wrong)
            reseal(index)
            try:
                ask(index)
            except SearchError as error:
                one_line(error)
        path.write_bytes(whole)


def test_pickles_are_never_opened(good, tmp_path):
    index = tmp_path / "ix"
    shutil.copytree(good, index)
    for path in [p for p in parts(index) if p.suffix in (".npy", ".npz")]:
        with open(path, "wb") as stream:
            np.save(stream, np.array([{"a": print}], dtype=object), allow_pickle=True)
    reseal(index)
    with pytest.raises(IndexDamagedError):
        ask(index)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 99}, "version 99 where 1 is read"),
        ({"format": "other"}, "no manifest of a search index"),
        ({"generation": "../../etc"}, "damaged"),
        ({"generation": None}, "damaged"),
        ({"shards": -1}, "damaged"),
        ({"shards": 10**9}, "damaged"),
        ({"shards": "2"}, "damaged"),
        ({"parts": []}, "damaged"),
        ({"parts": {"x": [1, "y"]}}, "damaged"),
        ({"settings": 3}, "damaged"),
    ],
)
def test_manifests_that_lie(good, tmp_path, change, match):
    index = tmp_path / "ix"
    shutil.copytree(good, index)
    manifest = json.loads((index / "manifest.json").read_text())
    (index / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(IndexDamagedError, match=match) as error:
        ask(index)
    one_line(error.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, '{"format": "gradatim-search-index"}', "\ud800"]
)
def test_manifests_that_are_none(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(IndexDamagedError):
        FolderIndex(tmp_path)


def test_settings_of_the_wrong_type(good, tmp_path):
    index = tmp_path / "ix"
    shutil.copytree(good, index)
    manifest = json.loads((index / "manifest.json").read_text())
    for name, value in (("bits", "32"), ("bits", 10**9), ("methods", [["binary"]]), ("methods", "binary")):
        changed = {**manifest, "settings": {**manifest["settings"], name: value}}
        (index / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(SearchError):
            ask(index)


def test_a_damaged_old_index_is_replaced_only_when_asked(good, tmp_path):
    folder = make_folder(tmp_path / "docs", 2)
    build_index(folder, tmp_path / "ix")
    (tmp_path / "ix" / "manifest.json").write_text("{")
    with pytest.raises(IndexDamagedError, match="--fresh"):
        build_index(folder, tmp_path / "ix")
    assert build_index(folder, tmp_path / "ix", IndexSettings(fresh=True)).changed
    (part,) = (tmp_path / "ix").glob("g*/shard-0000/passages.jsonl")
    part.write_bytes(b"x")
    put(folder / "new.txt", "words")
    with pytest.raises(IndexDamagedError):
        build_index(folder, tmp_path / "ix")
    assert build_index(folder, tmp_path / "ix", IndexSettings(fresh=True)).read == 3
