"""The digest changes with what a trial runs, and with nothing else."""

from __future__ import annotations

import importlib
import sys
import textwrap

import pytest

from gradatim.bench import fingerprint

HOUSE = {
    "gradatim_probe_study.py": """
        '''A study.'''
        from gradatim.fakeroom import part
        from gradatim.bench import Outcome

        CONSTANT = 3
        WORDS = "claims and figures"

        def helper(x):
            '''Words.'''
            return x + CONSTANT  # a comment

        def trial(arm, seed, scale):
            return Outcome({"m": helper(part(seed))})

        def draw(figure, results):
            return WORDS
        """,
    "fakeroom/__init__.py": """
        from gradatim.fakeroom.one import part
        from gradatim.fakeroom.two import other
        """,
    "fakeroom/one.py": """
        from gradatim.fakeroom.deep import constant

        def part(x):
            return x * constant()
        """,
    "fakeroom/deep.py": "def constant():\n    return 2\n",
    "fakeroom/two.py": "def other(x):\n    return x\n",
}


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A throw-away room of the house, and a study module that uses it."""
    import gradatim

    monkeypatch.setattr(gradatim, "__path__", [*gradatim.__path__, str(tmp_path)])
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in HOUSE.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(text))

    def digest(changes=()):
        for name, old, new in changes:
            file = tmp_path / name
            text = file.read_text()
            assert old in text
            file.write_text(text.replace(old, new))
        for cache in (fingerprint.code_digest, fingerprint._file, fingerprint._parse):
            cache.cache_clear()
        for name in [m for m in sys.modules if "fakeroom" in m or m == "gradatim_probe_study"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        sys.dont_write_bytecode = True
        return fingerprint.code_digest(importlib.import_module("gradatim_probe_study").trial)

    yield digest
    for name in [m for m in sys.modules if "fakeroom" in m or m == "gradatim_probe_study"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("gradatim_probe_study.py", "return x + CONSTANT", "return x - CONSTANT"),
        ("gradatim_probe_study.py", "CONSTANT = 3", "CONSTANT = 4"),
        ("fakeroom/one.py", "x * constant()", "x / constant()"),
        ("fakeroom/deep.py", "return 2", "return 5"),
    ],
)
def test_an_edited_method_is_measured_again(house, file, old, new):
    assert house() != house([(file, old, new)])


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("gradatim_probe_study.py", "claims and figures", "other words"),
        ("gradatim_probe_study.py", "# a comment", "# another"),
        ("gradatim_probe_study.py", "'''Words.'''", "'''Better words.'''"),
        ("fakeroom/two.py", "return x", "return -x"),
    ],
)
def test_words_and_parts_it_does_not_use_change_nothing(house, file, old, new):
    assert house() == house([(file, old, new)])


@pytest.mark.parametrize(("file", "counts"), [("fakeroom/one.py", True), ("fakeroom/two.py", False)])
def test_a_lazy_room_is_followed_by_the_names_under_type_checking(house, file, counts):
    lazy = (
        "fakeroom/__init__.py",
        "from gradatim.fakeroom.one import part",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gradatim.fakeroom.one import part\n"
        "from gradatim.fakeroom import one\ndef __getattr__(name):\n    return one.part",
    )
    before = house([lazy])
    assert (house([(file, "return x", "return 7 + x")]) != before) == counts


def test_real_studies_see_their_parts_but_not_the_engine():
    from gradatim import studies

    for slug in studies.MODULES:
        study = studies.load(slug)
        function = study.trial or study.batch
        seen: dict[str, str] = {}
        path = function.__code__.co_filename
        import ast
        from pathlib import Path

        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
        for node in fingerprint._reachable(tree, function.__qualname__):
            fingerprint._follow(node, function.__module__, seen)
        rooms = {name.split(".")[1] for name in seen if name.count(".")}
        assert set(study.rooms) & rooms, (slug, sorted(seen))
        assert not [
            m for m in seen if m.startswith("gradatim.bench") and not m.startswith("gradatim.bench.fit")
        ]
