"""A digest of the code a trial runs, so that an edited method is measured again.

The trial function's own module contributes what the function reaches: editing a claim's wording or a
figure re-measures nothing. Every part module it imports, directly or through others, contributes whole.
Comments, docstrings and layout do not count. Of the engine only the training loop can change a number.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = "gradatim"
NOT_METHOD = ("gradatim.bench", "gradatim.report", "gradatim.cli")
TRAINING_LOOP = "gradatim.bench.fit"  # and fit_batches, fit_step ... beside it


@lru_cache(maxsize=256)
def code_digest(function: Callable[..., Any]) -> str:
    """SHA-256 over the definitions `function` reaches and the part modules they import."""
    home = function.__module__
    path = function.__code__.co_filename
    tree = _without_docstrings(ast.parse(Path(path).read_text(encoding="utf-8")))
    own = _reachable(tree, function.__qualname__)
    parts = [f"{home}:{ast.unparse(node)}" for node in own]
    seen: dict[str, str] = {}
    for node in own:
        _follow(node, home, seen)
    parts += [f"{name}:{source}" for name, source in sorted(seen.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _reachable(tree: ast.Module, name: str) -> list[ast.stmt]:
    """Top-level statements that `name` needs, in order; all of them when it is not defined at the top."""
    defines: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        for defined in _defined(node):
            defines.setdefault(defined, []).append(node)
    if name not in defines:
        return tree.body
    wanted: set[int] = set()
    queue = [name]
    done: set[str] = set()
    while queue:
        current = queue.pop()
        if current in done:
            continue
        done.add(current)
        for node in defines.get(current, ()):
            wanted.add(id(node))
            queue += [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
    return [node for node in tree.body if id(node) in wanted]


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            yield alias.asname or alias.name.split(".")[0]
    else:
        yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


def _follow(node: ast.AST, home: str, seen: dict[str, str]) -> None:
    for name, symbol in _imports(node, home):
        _visit(name, symbol, seen)


def _imports(node: ast.AST, home: str) -> Iterator[tuple[str, str | None]]:
    for n in ast.walk(node):
        if isinstance(n, ast.Import):
            for alias in n.names:
                yield alias.name, None
        elif isinstance(n, ast.ImportFrom):
            base = n.module or ""
            if n.level:
                package = home.rsplit(".", n.level)[0]
                base = f"{package}.{base}".rstrip(".")
            for alias in n.names:
                yield base, alias.name


def _visit(module: str, symbol: str | None, seen: dict[str, str]) -> None:
    if module.split(".")[0] != ROOT or (
        module.startswith(NOT_METHOD) and not module.startswith(TRAINING_LOOP)
    ):
        return
    if symbol and (child := _file(f"{module}.{symbol}")) is not None and child != _file(module):
        _visit(f"{module}.{symbol}", None, seen)
        return
    path = _file(module)
    if path is None or module in seen:
        return
    tree = _parse(path)
    if path.name == "__init__.py" and symbol:
        # A room re-exports, some names lazily (those stand under `if TYPE_CHECKING:`): follow the one name to
        # the file it comes from, not the whole room.
        under_if = (n for block in tree.body if isinstance(block, ast.If) for n in block.body)
        for n in (*tree.body, *under_if):
            if isinstance(n, ast.ImportFrom) and any((a.asname or a.name) == symbol for a in n.names):
                original = next(a.name for a in n.names if (a.asname or a.name) == symbol)
                base = f"{module}.{n.module}" if n.level else (n.module or "")
                _visit(base, original, seen)
                return
    seen[module] = ast.unparse(tree)
    _follow(tree, module if path.name != "__init__.py" else f"{module}.__init__", seen)
    if path.name == "__init__.py" and symbol:
        for file in sorted(path.parent.glob("*.py")):
            if file.stem != "__init__":
                _visit(f"{module}.{file.stem}", None, seen)


@lru_cache(maxsize=1024)
def _file(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@lru_cache(maxsize=1024)
def _parse(path: Path) -> ast.Module:
    return _without_docstrings(ast.parse(path.read_text(encoding="utf-8")))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree
