"""Running text: nothing lost, parts contiguous, windows seeded, bad files refused in one line."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradatim.tasks.text_stream import UNKNOWN, _from_text, text_stream


@given(st.text(min_size=10, max_size=200))
def test_every_character_comes_back_in_order(text):
    stream = _from_text("t", text)
    assert stream.decode(torch.cat([stream.train, stream.valid, stream.test])) == text
    assert stream.decode(stream.encode(text)) == text
    assert (len(stream.train), len(stream.valid)) == (
        int(0.8 * len(text)),
        int(0.9 * len(text)) - len(stream.train),
    )


def test_unseen_characters_are_id_0():
    stream = _from_text("t", "abcabc" * 10)
    assert stream.encode("aZ").tolist() == [1, 0]
    assert stream.decode(stream.encode("aZ")) == "a" + UNKNOWN
    assert stream.vocab_size == 4


def test_windows_are_pieces_of_the_part_and_depend_on_the_generator_alone():
    stream = text_stream("topics")
    assert stream.vocab_size > 90
    assert len(stream.train) > 300_000
    drawn = stream.windows("valid", 5, 33, torch.Generator().manual_seed(3))
    again = stream.windows("valid", 5, 33, torch.Generator().manual_seed(3))
    assert torch.equal(drawn, again)
    text = stream.decode(stream.valid)
    assert all(stream.decode(row) in text for row in drawn)


def test_starts_cover_the_whole_part():
    stream = _from_text("t", "".join(chr(97 + k % 26) for k in range(100)))
    starts = {tuple(w.tolist()) for w in stream.windows("test", 500, 9, torch.Generator().manual_seed(0))}
    assert len(starts) == 2  # ten characters have two windows of nine


def test_chunks_are_neighbours():
    stream = text_stream("topics")
    cut = stream.chunks("test", 50)
    assert torch.equal(cut.flatten(), stream.test[: cut.numel()])
    few = stream.chunks("test", 50, limit=7)
    assert torch.equal(few[0], cut[0])
    assert torch.equal(few[-1], cut[-1])
    assert len(few) == 7


def test_files_of_the_users(tmp_path):
    body = "Die Straße war naß.\r\n" * 60
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + body.encode())
    stream = text_stream(tmp_path / "a.txt")
    assert "\r" not in stream.characters
    assert "ß" in stream.characters
    assert "\ufeff" not in stream.characters
    (tmp_path / "b.jsonl").write_text("\n".join('{"text": "' + "x" * 600 + '"}' for _ in range(2)) + "\n")
    lines = text_stream(tmp_path / "b.jsonl")
    assert lines.decode(torch.cat([lines.train, lines.valid, lines.test])) == "x" * 600 + "\n\n" + "x" * 600
    assert text_stream(tmp_path).decode(text_stream(tmp_path).train[:10]) == "Die Straße"


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("none.txt", None, FileNotFoundError, "none.txt"),
        ("short.txt", b"abc", ValueError, "3 characters"),
        ("latin.txt", "naß".encode("latin-1") * 600, ValueError, "not UTF-8"),
        ("bad.jsonl", b'{"text": "x"}\n{"txt": 1}', ValueError, "line 2"),
        ("worse.jsonl", b"{", ValueError, "line 1"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, error, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=says):
        text_stream(tmp_path / name)


def test_a_window_longer_than_the_part_is_refused():
    with pytest.raises(ValueError, match="does not fit the test part"):
        _from_text("t", "ab" * 50).windows("test", 1, 11, torch.Generator())
