"""Does the paper hold? One module per paper, found by number or slug."""

from __future__ import annotations

import difflib
import importlib

from gradatim.bench import Study

MODULES: dict[str, tuple[int, str]] = {
    "energy-transformer": (1, "energy_transformer"),
    "icl-linear": (2, "icl_linear"),
    "icl-boolean": (3, "icl_boolean"),
    "nested-learning": (4, "nested_learning"),
    "concept-meta": (7, "concept_meta"),
    "reranking-curricula": (8, "reranking_curricula"),
    "boosted-network": (9, "boosted_network"),
    "multi-positive": (10, "multi_positive"),
    "icl-gradient-descent": (11, "icl_gradient_descent"),
    "seal": (13, "seal"),
    "text-vectors": (16, "text_vectors"),
    "icl-vs-gd": (17, "icl_vs_gd"),
    "schedule-refinement": (20, "schedule_refinement"),
    "icl-newton": (21, "icl_newton"),
    "attention-svm": (22, "attention_svm"),
    "lg-anna": (23, "lg_anna"),
}


class UnknownStudy(LookupError):
    """No study answers to that name; the message lists those there are."""


def load(name: str) -> Study:
    """The study of a paper by its number ("20", "09") or slug ("schedule-refinement").

    Raises UnknownStudy with a one-line message that names what there is.
    """
    slug = _slug(name.strip().lower())
    study: Study = importlib.import_module(f"gradatim.studies.{MODULES[slug][1]}").study
    return study


def load_all() -> list[Study]:
    """Every study, by number."""
    return [load(slug) for slug, _ in sorted(MODULES.items(), key=lambda item: item[1])]


def _slug(name: str) -> str:
    if name in MODULES:
        return name
    if name.isdigit():
        for slug, (number, _) in MODULES.items():
            if number == int(name):
                return slug
    near = difflib.get_close_matches(name, MODULES, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else "."
    known = ", ".join(f"{number:02d} {slug}" for slug, (number, _) in MODULES.items())
    raise UnknownStudy(f"no study {name!r}{hint} There are: {known}")
