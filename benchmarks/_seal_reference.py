"""SEAL's own index and logits processor out of a checkout, without the old transformers they need.

To build the extension module in place: compile sdsl-lite's lib/*.cpp into libsdsl.a, run
`swig -c++ -python seal/cpp_modules/fm_index.i`, compile it with fm_index.cpp against libsdsl and both
libdivsufsort and libdivsufsort64, and put the result at seal/cpp_modules/_fm_index.so. Its licence is
CC-BY-NC.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar


class _StandIn(ModuleType):
    """A module that has every name: what the two classes import and never use is a plain `object`."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


@contextmanager
def _replaced(modules: dict[str, ModuleType]) -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def load(folder: str) -> tuple[Any, Any]:
    """`FMIndex` and `IndexBasedLogitsProcessor` of a checkout whose extension module was built in place.

    Raises ImportError where it was not built.
    """
    from transformers import LogitsProcessor

    package = ModuleType("seal")  # not its __init__, which imports all of the old transformers
    package.__path__ = [str(Path(folder) / "seal")]
    old: Any = _StandIn("transformers")
    old.LogitsProcessor = LogitsProcessor
    names = ("more_itertools", "transformers.generation_utils", "transformers.generation_logits_process")
    modules = {"seal": package, "transformers": old, **{name: _StandIn(name) for name in names}}
    with _replaced(modules):
        from seal.beam_search import IndexBasedLogitsProcessor
        from seal.index import FMIndex
    return FMIndex, IndexBasedLogitsProcessor
