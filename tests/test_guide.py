"""What the guide shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parent.parent / "docs" / "guide"


@pytest.mark.parametrize("page", ["identify.md"])
def test_snippets_of_a_page_run_one_after_the_other(page):
    text = (GUIDE / page).read_text(encoding="utf-8")
    namespace: dict = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, page, "exec"), namespace)  # noqa: S102
    assert str(namespace["found"]).startswith(
        "Bayes(0.5, 1) (as well as ridge(0.25)): similarity of errors 1 "
    )
