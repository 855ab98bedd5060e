"""An identification as a page."""

from __future__ import annotations

from pathlib import Path

from gradatim.bench import Table
from gradatim.probes.identification import Identification, table_rows
from gradatim.report.answer_page import Answer, Section, write_answer

READ = (
    "Every reference is tuned to the model on contexts of its own before it is judged. Similarity is that of "
    "their errors: 1 for the same predictions, 0 for errors that have nothing in common. References as near "
    "as the best within the bootstrap, a tenth of its difference or 0.002 of its similarity are named "
    "together, the plainest first."
)
READ_LAYERS = (
    "One linear read-out per layer, fitted on contexts of its own. k Newton steps lie near 2^(k/2) steps of "
    "gradient descent: the two columns are one fact on two axes."
)


def write_page(found: Identification, folder: Path, *, model: str, command: str) -> Path:
    """Write the page of an identification; returns its index."""
    rows = table_rows(found)
    header = ("reference", "difference", "similarity", "from", "to", "its error")
    lines = [
        f"{m.family}: {m.numbers[0]:.4g} [{m.number_interval[0]:.4g}, {m.number_interval[1]:.4g}]"
        for m in found.matches
        if m.number_interval is not None
    ]
    sections = [Section("References", READ, _table(header, rows["references"]), lines)]
    if found.layers:
        header = ("layer", "nearest reference", "similarity", "error", "Newton steps", "GD steps")
        sections.append(Section("Layer by layer", READ_LAYERS, _table(header, rows["layers"])))
    title = "Similarity of the model's errors to each reference's"
    answer = Answer(
        title="identify",
        kicker=model,
        answer=found.best.name if found.best else "No reference fits",
        headline=found.headline,
        facts=[found.task, f"{found.contexts} contexts", f"the model's own error {found.error:.4g}"],
        draw=found.plot,
        size=(860 if found.layers else 560, 90 + 24 * min(len(found.matches), 16)),
        figure_title=title,
        alt=f"{found.headline}. Dots are similarities with 95% intervals; the dotted line is the threshold.",
        sections=sections,
        notes=found.notes,
    )
    return write_answer(answer, folder, document=found.to_json(), command=command)


def _table(header: tuple[str, ...], rows: object) -> Table:
    assert isinstance(rows, list)
    return Table(header, [[f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in rows])
