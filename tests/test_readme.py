"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_python_snippets_run(code):
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102


def test_there_is_a_snippet_for_the_first_door():
    assert len(SNIPPETS) == 3


def test_commands_named_exist():
    import click
    from typer.main import get_command

    from gradatim.cli.app import app

    root = get_command(app)
    context = click.Context(root)
    for line in re.findall(r"^gradatim (\w+)(?: (\w+))?", README, re.MULTILINE):
        command = root.get_command(context, line[0])
        assert command is not None, line
        if isinstance(command, click.Group):
            assert command.get_command(click.Context(command), line[1]) is not None, line


def test_files_named_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
