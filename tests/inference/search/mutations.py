"""Damage to files of a search index: flipped bytes, cuts, and well-formed files that say something else."""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path

import numpy as np

from gradatim.inference.index_file import read_index, write_index

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_index_file import forge

NUMBERS = (0, 1, -1, 2**31, 2**63, 10**30, 1e308, -0.5)
SCALARS = (*NUMBERS, "x", "", "../../x", "\0", None, True, False)


def mutated(path: Path, rng: random.Random) -> bytes:
    """The file's content after one random attack that fits its kind."""
    kind = rng.random()
    if kind < 0.3 and path.suffix in (".json", ".jsonl"):
        return _other_json(path, rng)
    if kind < 0.35 and path.name == "tokens.index":
        return _other_index(path, rng)
    if kind < 0.45 and path.suffix == ".npy":
        return _other_array(path, rng)
    data = bytearray(path.read_bytes())
    reach = min(len(data), 200) if rng.random() < 0.4 else len(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        if data:
            value = rng.choice((0, 127, 128, 255, rng.randrange(256), rng.randrange(32, 127)))
            data[rng.randrange(reach)] = value
    if rng.random() < 0.2:
        return bytes(data[: rng.randrange(len(data) + 1)])
    return bytes(data + data[: rng.randrange(len(data) + 1)] if rng.random() < 0.05 else data)


def _other_json(path: Path, rng: random.Random) -> bytes:
    lines = (
        path.read_text(encoding="utf-8").split("\n") if path.suffix == ".jsonl" else [path.read_text("utf-8")]
    )
    at = rng.randrange(len(lines))
    if lines[at]:
        document = json.loads(lines[at])
        for _ in range(rng.choice((1, 1, 2, 5))):
            _change(document, rng)
        lines[at] = json.dumps(document)
    return "\n".join(lines).encode()


def other(rng: random.Random):
    """A value that belongs nowhere."""
    return rng.choice([*SCALARS, [], {}, [1]])


def _change(document, rng: random.Random) -> None:
    """One value somewhere in a document replaced, dropped or added."""
    places = []

    def walk(value):
        if isinstance(value, dict):
            for key, inner in value.items():
                places.append((value, key))
                walk(inner)
        elif isinstance(value, list):
            for i, inner in enumerate(value[:50]):
                places.append((value, i))
                walk(inner)

    walk(document)
    if not places:
        return
    holder, key = rng.choice(places)
    what = rng.random()
    if what < 0.7:
        holder[key] = other(rng)
    elif what < 0.85:
        del holder[key]
    elif isinstance(holder, dict):
        holder[str(other(rng))] = other(rng)
    else:
        holder.insert(0, other(rng))


def _other_index(path: Path, rng: random.Random) -> bytes:
    """A token index whose checksums are right."""
    meta, arrays = read_index(path)
    target = path.with_name("forged")
    arrays = {name: np.array(array) for name, array in arrays.items()}
    write_index(target, *forge(meta, arrays, np.random.default_rng(rng.randrange(2**31))))
    data = target.read_bytes()
    target.unlink()
    return data


def _other_array(path: Path, rng: random.Random) -> bytes:
    """A well-formed array: values that point elsewhere, another order, length or type."""
    whole = np.load(path)
    kind = rng.randrange(6)
    array = whole.copy()
    if kind == 0 and len(array):
        values = {"i": [-1, 2**31 - 1, -(2**31), 0, 1], "u": [0, 1, 255]}.get(
            array.dtype.kind, [np.nan, np.inf, 0]
        )
        array.reshape(-1)[rng.randrange(array.size) :] = rng.choice(values)
    elif kind == 1:
        array = array[::-1]
    elif kind == 2:
        array = array[: rng.randrange(len(array) + 1)]
    elif kind == 3:
        array = np.concatenate([array, array])
    elif kind == 4:
        array = array.astype(rng.choice(["<i8", ">i4", "<f4", "|u1", "<f8"]))
    else:
        np.random.default_rng(rng.randrange(2**31)).shuffle(array)
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()
