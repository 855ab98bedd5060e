"""The reference algorithms that a learner of Boolean functions is compared with."""

from __future__ import annotations

from typing import Any

from gradatim.probes.boolean_bayes import TernaryBayes
from gradatim.probes.boolean_references import (
    Elimination,
    GF2Elimination,
    NearestNeighbours,
    Null,
    SignAveraging,
)
from gradatim.probes.reference_families import Family

LARGEST_ENUMERATION = 8


def boolean_families(task: Any) -> list[Family]:
    """Null, averaging, neighbours, elimination, GF(2) and, up to 8 bits, both exact Bayes learners.

    The second Bayes learner also reads what planted inputs tell about the function without labels.
    """
    families = [
        Family("null", Null, plain=0),
        Family("averaging", SignAveraging, plain=1),
        *(
            Family("nearest neighbours", lambda k=k, m=m: NearestNeighbours(k, m), plain=2)
            for k in (1, 3)
            for m in ("euclidean", "cosine")
        ),
        Family("elimination", lambda: Elimination("conjunction"), plain=3),
        Family("elimination (disjunctions)", lambda: Elimination("disjunction"), plain=3),
        Family("GF(2) elimination", GF2Elimination, plain=3),
    ]
    name = getattr(task, "name", "")
    if task.d <= LARGEST_ENUMERATION:
        settings = {"noise": task.noise, "prior": task.prior, "k": task.k, "planted": task.planted_share}
        for inputs in (False, True):
            try:
                bayes = TernaryBayes(name, inputs=inputs, **settings)
            except ValueError:
                continue  # a class that is no set of ternary weights
            label = "Bayes, labels and inputs" if inputs else "Bayes, labels only"
            families.append(Family(label, lambda b=bayes: b, plain=4))
    return families
