"""Take the README's picture: the top of a report's index, as a browser draws it.

    python docs/screenshot.py gradatim-report docs/assets/report.png

Needs Chromium (Debian's `chromium`, or the path in GRADATIM_CHROMIUM) and the package `playwright`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def take(report: Path, picture: Path, width: int = 1200, height: int = 1500, dark: bool = False) -> None:
    """Save a picture of `report`/index.html, `width` by at most `height` CSS pixels at double density.

    Raises FileNotFoundError where there is no report or no Chromium.
    """
    from playwright.sync_api import sync_playwright

    index = report / "index.html"
    if not index.is_file():
        raise FileNotFoundError(f"{report} holds no report; write one with: gradatim report --out {report}")
    chromium = os.environ.get("GRADATIM_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        raise FileNotFoundError("no chromium; install it, or name it in GRADATIM_CHROMIUM")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(
            viewport={"width": width, "height": 800},
            device_scale_factor=2,
            color_scheme="dark" if dark else "light",
        )
        page.goto(index.resolve().as_uri())
        full = page.evaluate("document.documentElement.scrollHeight")
        picture.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(
            path=str(picture),
            full_page=True,
            clip={"x": 0, "y": 0, "width": width, "height": min(height, full)},
        )
        browser.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("report", type=Path, help="folder that `gradatim run` or `gradatim report` wrote")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=1500, help="at most so many CSS pixels")
    parser.add_argument("--dark", action="store_true")
    a = parser.parse_args(argv)
    try:
        take(a.report, a.picture, a.width, a.height, a.dark)
    except FileNotFoundError as e:
        print(e, file=sys.stderr)
        return 2
    print(a.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
