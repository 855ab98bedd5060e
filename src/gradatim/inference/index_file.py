"""The file of a token index: a JSON header and raw arrays, each with its SHA-256; nothing is unpickled.

    magic (8 bytes) | version (4) | header length (4) | SHA-256 of the header (32) | header | arrays

Arrays begin at multiples of 64 bytes, little endian, so that the file can be mapped into memory and shared
by processes. The reader believes nothing: what the header says is compared with the size of the file, and
tables that lead to other places are checked, before any array is used.
"""

from __future__ import annotations

import hashlib
import json
import mmap as memory_map
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"GRADTIDX"
VERSION = 1
_ALIGN = 64
_PREAMBLE = struct.Struct("<8sII32s")
_LONGEST_HEADER = 1 << 20
_TYPES = ("|u1", "<u2", "<u4", "<u8", "<i4", "<i8")


class IndexFormatError(ValueError):
    """A file is no usable index; the message says in one line what is wrong and what to do."""


def write_index(path: str | Path, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file, whole or not at all: readers of an older file of that name keep what they mapped.

    Raises OSError where the folder cannot be written.
    """
    target = Path(path)
    plain = {name: _little_endian(array) for name, array in arrays.items()}
    entries: dict[str, dict[str, Any]] = {}
    offset = 0
    for name, array in plain.items():
        entries[name] = {
            "dtype": array.dtype.str,
            "length": len(array),
            "offset": offset,
            "sha256": _digest(array),
        }
        offset = _aligned(offset + array.nbytes)
    header = json.dumps({"meta": dict(meta), "arrays": entries}, sort_keys=True).encode()
    base = _aligned(_PREAMBLE.size + len(header))
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "wb") as stream:
            stream.write(_PREAMBLE.pack(MAGIC, VERSION, len(header), hashlib.sha256(header).digest()))
            stream.write(header)
            for name, array in plain.items():
                stream.write(b"\0" * (base + entries[name]["offset"] - stream.tell()))
                array.tofile(stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def read_index(
    path: str | Path, *, mmap: bool = True, verify: bool = True
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `write_index` was given. Arrays are read-only.

    `verify=False` leaves out the SHA-256 of header and arrays (a second per GB); every other check remains.
    Raises IndexFormatError for anything that is not such a file, FileNotFoundError where there is none.
    """
    name = Path(path).name
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        preamble = stream.read(_PREAMBLE.size)
        if len(preamble) < _PREAMBLE.size or not preamble.startswith(MAGIC):
            raise IndexFormatError(f"{name} is no token index: it does not begin with {MAGIC.decode()}")
        _, version, length, digest = _PREAMBLE.unpack(preamble)
        if version != VERSION:
            raise IndexFormatError(
                f"{name} has format version {version}, this release reads {VERSION}; build it again"
            )
        if not 0 < length <= min(_LONGEST_HEADER, size):
            raise IndexFormatError(f"{name} is damaged: a header of {length} bytes in a file of {size}")
        header = stream.read(length)
        if verify and hashlib.sha256(header).digest() != digest:
            raise IndexFormatError(f"{name} is damaged: the header's checksum differs; build it again")
        whole: Any = (
            memory_map.mmap(stream.fileno(), 0, access=memory_map.ACCESS_READ)
            if mmap
            else (stream.seek(0), stream.read())[1]
        )
    meta, entries = _parse(name, header)
    base = _aligned(_PREAMBLE.size + length)
    arrays = {key: _array(name, whole, size, base, key, entry) for key, entry in entries.items()}
    if verify:
        for key, array in arrays.items():
            found = _digest(array)
            if found != entries[key]["sha256"]:
                raise IndexFormatError(f"{name} is damaged: the checksum of {key} differs; build it again")
    return meta, arrays


def require(
    arrays: Mapping[str, np.ndarray], name: str, kind: str, length: int, *, last: int | None = None
) -> np.ndarray:
    """An array of this kind ("u", "i") and length; with `last`, one that rises from 0 to it.

    Raises IndexFormatError otherwise.
    """
    array = arrays.get(name)
    if array is None:
        raise IndexFormatError(f"the index is damaged: it has no array {name!r}; build it again")
    if array.dtype.kind != kind or len(array) != length or length < 0:
        raise IndexFormatError(
            f"the index is damaged: array {name!r} is {array.dtype}[{len(array)}], "
            f"not {'unsigned' if kind == 'u' else 'signed'}[{length}]; build it again"
        )
    if last is not None:
        rises = length > 0 and array[0] == 0 and array[-1] == last
        if not rises or bool((array[1:] < array[:-1]).any()):
            raise IndexFormatError(
                f"the index is damaged: array {name!r} does not rise from 0 to {last}; build it again"
            )
    return array


def whole_number(meta: Mapping[str, Any], name: str, least: int, most: int) -> int:
    """A number of the header within its bounds. Raises IndexFormatError otherwise."""
    value = meta.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise IndexFormatError(
            f"the index is damaged: {name} is {str(value)[:40]!r}, not a number from {least} to {most}"
        )
    return value


def _parse(name: str, header: bytes) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    try:
        document = json.loads(header)
        meta, entries = document["meta"], document["arrays"]
        good = isinstance(meta, dict) and isinstance(entries, dict)
        good = good and all(isinstance(entry, dict) for entry in entries.values())
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise IndexFormatError(f"{name} is damaged: its header cannot be read; build it again")
    return meta, entries


def _array(name: str, whole: Any, size: int, base: int, key: str, entry: Mapping[str, Any]) -> np.ndarray:
    kind, length, offset = entry.get("dtype"), entry.get("length"), entry.get("offset")
    numbers = all(isinstance(v, int) and not isinstance(v, bool) for v in (length, offset))
    if kind not in _TYPES or not numbers or not isinstance(entry.get("sha256"), str):
        raise IndexFormatError(f"{name} is damaged: the entry of array {key[:40]!r} cannot be read")
    assert isinstance(length, int)
    assert isinstance(offset, int)
    dtype = np.dtype(kind)
    if length < 0 or offset < 0 or offset % _ALIGN or base + offset + length * dtype.itemsize > size:
        raise IndexFormatError(
            f"{name} is damaged or cut off: array {key[:40]!r} reaches past the end ({size} bytes)"
        )
    if length == 0:
        return np.empty(0, dtype)
    array = np.frombuffer(whole, dtype, length, base + offset)
    array.flags.writeable = False
    return array


def _digest(array: Any) -> str:
    return hashlib.sha256(memoryview(array).cast("B") if len(array) else b"").hexdigest()


def _little_endian(array: np.ndarray) -> np.ndarray:
    plain = np.ascontiguousarray(array)
    plain = plain.astype(plain.dtype.newbyteorder("<"), copy=False)
    if plain.dtype.str not in _TYPES or plain.ndim != 1:
        raise TypeError(f"arrays of {plain.dtype} and {plain.ndim} dimensions have no place in an index file")
    return plain


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN
