"""The parts of scikit-learn's contract that hold for estimators of texts.

Its full suite feeds numeric tables and leaves out whoever takes none; these look at the estimator alone.
(The check that any value may be stored is left out: the runtime type checker of the tests refuses such
values.)
"""

import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks as checks

from gradatim.models import ParagraphVector, SenseSkipGram, SkipGram

ESTIMATORS = [ParagraphVector, SkipGram, SenseSkipGram]
CHECKS = [
    checks.check_estimator_cloneable,
    checks.check_estimator_tags_renamed,
    checks.check_valid_tag_types,
    checks.check_estimator_repr,
    checks.check_no_attributes_set_in_init,
    checks.check_mixin_order,
    checks.check_parameters_default_constructible,
    checks.check_get_params_invariance,
    checks.check_set_params,
]
TEXTS = ["the mean of an array", "sort the rows of an array", "the rows of a table"] * 6


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimator_keeps_the_contract(estimator, check):
    check(estimator.__name__, estimator())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_fit_transform_and_state(estimator):
    model = estimator(n_components=4, min_count=1, epochs=1, random_state=0)
    with pytest.raises(NotFittedError):
        model.transform(TEXTS)
    before = clone(model).get_params()
    assert model.fit(TEXTS) is model
    assert model.get_params() == before
    vectors = model.transform(TEXTS)
    assert vectors.shape == (len(TEXTS), len(model.get_feature_names_out()))
    again = clone(model).fit_transform(TEXTS)
    assert (again == vectors).all()
    with pytest.raises(TypeError, match="one string"):
        model.fit("one text")
    with pytest.raises(TypeError, match="document 0"):
        model.fit([1.5])
