"""Every scikit-learn estimator of ours passes scikit-learn's own checks.

Add an estimator by appending a case to `CASES`; a check may be expected to fail only with its reason.
"""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from gradatim.models import BoostedMLPClassifier, BoostedMLPRegressor

DRAWS_ROWS = (
    "with subsample < 1 every stage draws rows, so that a row repeated is not drawn as one row of weight 2"
)

CASES = [
    (
        BoostedMLPClassifier(n_units=20, random_state=0),
        {"check_sample_weight_equivalence_on_dense_data": DRAWS_ROWS},
    ),
    (
        BoostedMLPRegressor(n_units=20, random_state=0),
        {"check_sample_weight_equivalence_on_dense_data": DRAWS_ROWS},
    ),
    # Without drawing rows nothing is expected to fail. The penalty lets every block converge: where a search
    # stops early, the order of the rows, which the check changes, shows beyond its tolerance of 1e-7.
    (BoostedMLPClassifier(n_units=12, units_per_step=3, subsample=1.0, alpha=1.0, random_state=0), {}),
    (
        BoostedMLPRegressor(
            n_units=12, units_per_step=3, learning_rate=0.5, subsample=1.0, alpha=1.0, random_state=0
        ),
        {},
    ),
]


def _expected(estimator):
    reasons = {repr(case): failures for case, failures in CASES}
    return reasons.get(repr(estimator), {})


# The check of a label column vector, and others, warn on purpose.
@pytest.mark.filterwarnings("default")
@parametrize_with_checks([case for case, _ in CASES], expected_failed_checks=_expected)
def test_scikit_learn_contract(estimator, check):
    check(estimator)
