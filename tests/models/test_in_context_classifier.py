"""In-context learners as scikit-learn classifiers."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from gradatim.models import InContextClassifier
from gradatim.models.in_context import InContextConfig, InContextTransformer
from gradatim.models.in_context_recurrent import InContextGRU
from gradatim.probes import Elimination, NearestNeighbours
from gradatim.tasks import BooleanTask


# Checks of column vectors, of one class and others warn on purpose.
@pytest.mark.filterwarnings("default")
@parametrize_with_checks([InContextClassifier(NearestNeighbours(3))])
def test_scikit_learn_contract_of_in_context_classifier(estimator, check):
    check(estimator)


def data(rows=40, d=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, d))
    return x, np.where(x[:, 0] + 0.3 * rng.normal(size=rows) > 0, "yes", "no")


def test_nearest_neighbours_in_context_are_nearest_neighbours():
    x, y = data()
    ours = InContextClassifier(NearestNeighbours(3), batch_size=7).fit(x[:25], y[:25])
    peer = KNeighborsClassifier(3).fit(x[:25], y[:25])
    assert (ours.predict(x[25:]) == peer.predict(x[25:])).all()
    pipeline = make_pipeline(StandardScaler(), InContextClassifier(NearestNeighbours(3)))
    assert cross_val_score(pipeline, x, y).mean() > 0.6


def test_a_transformer_answers_as_it_does_inside_a_prompt():
    model = InContextTransformer(
        InContextConfig(d=5, n_positions=12, n_layer=2, n_head=2, n_embd=16, objective="binary"), seed=0
    ).eval()
    prompt = BooleanTask(5, "conjunction", 12).sample(1, generator=torch.Generator().manual_seed(0))
    x, y = prompt.x[0].numpy(), np.where(prompt.y[0] > 0, "b", "a")
    fitted = clone(InContextClassifier(model, binarize=0.0)).fit(x[:11], y[:11])
    logit = model(prompt.x, prompt.y).predictions[0, 11].item()
    assert fitted.decision_function(x[11:]).item() == pytest.approx(logit, abs=1e-5)
    assert fitted.predict(x[11:])[0] == ("b" if logit > 0 else "a")
    # Each row is asked on its own: the others in the call do not matter.
    both = fitted.decision_function(x)
    assert np.allclose(both[[3, 7]], fitted.decision_function(x[[3, 7]]), atol=1e-5)
    with pytest.raises(ValueError, match="reads 5 features"):
        clone(fitted).fit(x[:, :3], y)
    with pytest.raises(ValueError, match="n_positions"):
        clone(fitted).fit(x, y).predict(x)


def test_a_recurrent_learner_answers_too():
    model = InContextGRU(InContextConfig(d=5, n_positions=12, n_layer=1, n_embd=8), seed=0).eval()
    prompt = BooleanTask(5, "sparse_parity", 12).sample(1, generator=torch.Generator().manual_seed(0))
    x, y = prompt.x[0].numpy(), prompt.y[0].numpy()
    assert set(y[:11]) == {-1, 1}
    fitted = InContextClassifier(model, batch_size=3).fit(x[:11], y[:11])
    expected = model(prompt.x, prompt.y).predictions[0, 11].item()
    assert fitted.decision_function(x)[11] == pytest.approx(expected, abs=1e-5)


def test_bits_are_made_where_the_learner_needs_them():
    prompt = BooleanTask(6, "conjunction", 40).sample(1, generator=torch.Generator().manual_seed(1))
    x, y = (prompt.x[0].numpy() + 1) / 2, prompt.y[0].numpy()
    found = InContextClassifier(Elimination(), binarize=0.5).fit(x[:30], y[:30]).predict(x[30:])
    assert (found == Elimination()(prompt.x, prompt.y)[0, 30:].numpy()).mean() >= 0.9
    with pytest.raises(ValueError, match="Only binary classification"):
        InContextClassifier(Elimination()).fit(x, np.arange(40) % 3)
