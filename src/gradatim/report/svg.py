"""Matplotlib figures as inline SVG that takes its colours and fonts from the page.

Figures are drawn with a palette of colours that nobody would choose; in the finished SVG each of them is
replaced by a CSS variable, so that one drawing serves light, dark and print. Text stays text. The same
figure gives the same bytes: no dates, no random ids.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CYCLE = tuple(f"#0c0de{i}" for i in range(8))
INK, MUTED, LINE, PAPER = "#0c0de8", "#0c0de9", "#0c0dea", "#0c0deb"

_VARIABLES = {color: f"var(--c{i})" for i, color in enumerate(CYCLE)} | {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    # Black is what plotting code says when it means ink; white may be meant, as on a heat map.
    "#000000": "var(--ink)",
}
_COLOR = re.compile("|".join(map(re.escape, _VARIABLES)), re.IGNORECASE)
_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"
_URL = re.compile(r"url\(#([^)]*)\)")
# Characters that XML cannot hold.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """`text` without the control characters that XML and terminals cannot show."""
    return _UNPRINTABLE.sub("\ufffd", text)


def render(draw: Callable[[Figure], None], size: tuple[float, float], key: str, title: str, alt: str) -> str:
    """Draw on a figure of `size` CSS pixels and return it as an `<svg>` element.

    `key` prefixes every id and must be unique on the page; `title` and `alt` are what a screen reader
    says. Whatever `draw` raises passes through.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_style()), warnings.catch_warnings():
        # Missing glyphs (the browser has them), a layout too tight: nothing that the page's reader, or the
        # terminal of who runs the study, could act on.
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=(size[0] / 96, size[1] / 96), layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(buffer.getvalue(), key, title, alt)


def _style() -> dict[Any, Any]:
    from cycler import cycler

    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "gradatim",
        "axes.prop_cycle": cycler(color=CYCLE),
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.edgecolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": LINE,
        "hatch.color": INK,
        "patch.edgecolor": INK,
        "legend.facecolor": PAPER,
        "legend.edgecolor": LINE,
        "legend.frameon": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.titlelocation": "left",
        "axes.titlesize": 9.5,
        "axes.formatter.useoffset": False,
        "lines.linewidth": 1.6,
        "font.size": 9,
        "legend.fontsize": 8.5,
        "image.cmap": "cividis",
    }


def _themed(svg: bytes, key: str, title: str, alt: str) -> str:
    root = ElementTree.fromstring(svg)
    _drop(root, {f"{_SVG}metadata", f"{_SVG}style"})
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        # Indentation between the glyphs of a formula would be drawn as spaces.
        element.tail = None
        if len(element):
            element.text = None
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            element.attrib[name.removeprefix(_XLINK)] = _attribute(name, value, key)
        if element.tag == "text":
            element.attrib["style"] = _FAMILY.sub("", element.attrib.get("style", ""))
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    root.attrib.clear()
    root.attrib |= {
        "class": "mpl",
        "viewBox": f"0 0 {width:g} {height:g}",
        # Points to CSS pixels: the natural size, which the page may scale within limits.
        "width": f"{width * 96 / 72:.0f}",
        "height": f"{height * 96 / 72:.0f}",
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-desc",
    }
    for i, (tag, text) in enumerate((("title", title), ("desc", alt))):
        element = ElementTree.Element(tag, {"id": f"{key}-{tag}"})
        element.text = clean(text)
        root.insert(i, element)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _attribute(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name in ("href", f"{_XLINK}href"):
        return f"#{key}-{value[1:]}" if value.startswith("#") else value
    value = _URL.sub(rf"url(#{key}-\1)", value)
    return _COLOR.sub(lambda m: _VARIABLES[m[0].lower()], value)


def _drop(element: ElementTree.Element, tags: set[str]) -> None:
    for child in list(element):
        if child.tag in tags:
            element.remove(child)
        else:
            _drop(child, tags)
