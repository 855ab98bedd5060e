"""What the tests in a real browser share: Chromium, pages that must not complain, contrast."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
CHROMIUM = os.environ.get("GRADATIM_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium, once for a file of tests; import it there."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@contextmanager
def visits(browser, allowed: tuple[str, ...]) -> Iterator[Callable]:
    """Opens addresses; at the end no page has complained or asked for what does not begin as `allowed`."""
    troubles: list[str] = []
    contexts = []

    def go(address: str, width: int = 1280, **keywords):
        context = browser.new_context(viewport={"width": width, "height": 900}, **keywords)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: troubles.append(f"{address}: {m.type}: {m.text}"))
        page.on("pageerror", lambda e: troubles.append(f"{address}: {e}"))
        page.on("requestfailed", lambda r: troubles.append(f"{address}: failed {r.url}"))
        page.on(
            "request",
            lambda r: None if r.url.startswith(allowed) else troubles.append(f"asked for {r.url}"),
        )
        page.on("dialog", lambda d: (troubles.append(f"{address}: a dialog: {d.message}"), d.dismiss()))
        page.goto(address)
        return page

    yield go
    for context in contexts:
        context.close()
    assert troubles == []


def luminance(page, selector: str, of: str = "color") -> float:
    """Relative luminance of a computed colour, 0 to 1, as WCAG defines it."""
    color = page.eval_on_selector(selector, f"e => getComputedStyle(e).{of}")
    r, g, b = (int(v) / 255 for v in color.removeprefix("rgb(").removesuffix(")").split(","))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (r, g, b)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    """Ratio of two luminances, 1 to 21, as WCAG defines it."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
