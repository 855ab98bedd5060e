"""Verdicts on results whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from gradatim.bench import Arm, Claim, Contrast, Control, Level, Outcome, Results, Study, judge


def results(failed=None, **arms):
    return Results(
        {arm: {i: Outcome({"m": float(v)}) for i, v in enumerate(values)} for arm, values in arms.items()},
        failed or {},
    )


def study(*claims):
    return Study(
        slug="s", title="s", plain="", rooms=(), arms=(Arm("a"), Arm("b"), Arm("c")), claims=claims,
        profiles={}, headline=(("m", "higher"),), trial=lambda arm, seed, scale: Outcome({}),
    )  # fmt: skip


NOISE = np.random.default_rng(1).normal(0, 0.1, 10)
CONTROL = Control("c does it too", Contrast("a", "c", "m"))


def one(claim, data):
    (verdict,) = judge(study(claim), data)
    return verdict


def claim(**more):
    return Claim("x", "a beats b", Contrast("a", "b", "m"), more.pop("control", CONTROL), **more)


BASE = np.linspace(0, 1, 10)


def test_reproduced_and_survives():
    v = one(claim(), results(a=BASE + 1 + NOISE, b=BASE, c=BASE))
    assert (v.word, v.control.word) == ("reproduced", "survives")
    assert str(v).startswith("reproduced: a beats b (+")


def test_pairing_by_seed_is_what_makes_it_visible():
    shifted = results(a=100 * BASE + 0.5 + NOISE, b=100 * BASE, c=BASE)
    assert one(claim(), shifted).word == "reproduced"


def test_explained_away_by_a_control_that_does_as_well():
    control = Control("c does it too", Contrast("a", "c", "m"), margin=0.5)
    v = one(claim(control=control), results(a=BASE + 1 + NOISE, b=BASE, c=BASE + 1 - NOISE))
    assert (v.word, v.control.word) == ("reproduced", "explained away")


def test_not_reproduced_when_the_sign_is_wrong_or_the_effect_too_small():
    assert one(claim(), results(a=BASE - 1 + NOISE, b=BASE, c=BASE)).word == "not reproduced"
    small = results(a=BASE + 0.2 + NOISE, b=BASE, c=BASE)
    assert one(claim(), small).word == "reproduced"
    assert one(claim(margin=0.5), small).word == "not reproduced"


def test_inconclusive_says_how_many_seeds():
    v = one(claim(), results(a=BASE + 0.3 * NOISE.mean() + NOISE, b=BASE, c=BASE))
    assert v.word == "inconclusive"
    assert v.seeds_needed is not None
    assert v.seeds_needed > 10


def test_equivalence_three_ways():
    def equal(data, margin):
        return one(claim(test="equivalent", margin=margin), data).word

    same = results(a=BASE + NOISE - NOISE.mean(), b=BASE, c=BASE)
    assert equal(same, 0.5) == "reproduced"
    assert equal(same, 0.01) == "inconclusive"
    assert equal(results(a=BASE + 2 + NOISE, b=BASE, c=BASE), 0.5) == "not reproduced"
    with pytest.raises(ValueError, match="margin above 0"):
        claim(test="equivalent")


def test_equivalent_control():
    control = Control("the cost differs", Contrast("a", "c", "m"), test="equivalent", margin=0.5)
    data = results(a=BASE + 1 + NOISE, b=BASE, c=BASE + 1)
    assert one(claim(control=control), data).control.word == "survives"
    far = results(a=BASE + 1 + NOISE, b=BASE, c=BASE + 9)
    assert one(claim(control=control), far).control.word == "explained away"


def test_holm_counts_the_claims_of_the_study():
    weak = results(a=BASE + 0.045 + NOISE, b=BASE, c=BASE)
    alone = judge(study(claim()), weak)[0]
    assert alone.word == "reproduced"
    assert 0.005 < alone.p < 0.05
    many = [Claim(f"x{i}", "a beats b", Contrast("a", "b", "m"), CONTROL) for i in range(12)]
    assert {v.word for v in judge(study(*many), weak)} == {"inconclusive"}


def test_lower_is_better_and_levels():
    lower = Claim("x", "", Contrast("a", "b", "m", better="lower"), CONTROL)
    assert one(lower, results(a=BASE - 1 + NOISE, b=BASE, c=BASE)).word == "reproduced"
    level = Claim("x", "", Level("a", "m", bound=1e-3, better="lower"), CONTROL)
    assert one(level, results(a=np.full(5, 1e-9), c=BASE)).word == "reproduced"
    assert one(level, results(a=np.full(5, 1e-2), c=BASE)).word == "not reproduced"


def test_wilson_claims_need_a_level():
    share = Claim("x", "", Level("a", "m", bound=0.5), CONTROL, interval="wilson")
    assert one(share, results(a=[1.0] * 20)).word == "reproduced"
    assert one(share, results(a=[1.0] * 4)).word == "inconclusive"
    with pytest.raises(TypeError, match="Level"):
        one(claim(interval="wilson"), results(a=BASE, b=BASE))


def test_failed_trials_are_said_and_pairs_are_dropped():
    data = Results(
        {"a": {0: Outcome({"m": 1.0}), 1: Outcome({"m": 1.1}), 2: Outcome({"m": 1.2})},
         "b": {1: Outcome({"m": 0.0}), 2: Outcome({"m": 0.0})}},
        {"b": 1},
    )  # fmt: skip
    v = one(claim(), data)
    assert (v.estimate.n, v.failed_trials) == (2, 1)


def test_nothing_finished_is_inconclusive():
    v = one(claim(), Results({}))
    assert (v.word, v.estimate.n, v.seeds_needed) == ("inconclusive", 0, None)
    assert "no finished trials" in str(v)


def test_a_profile_judges_only_the_claims_that_it_has_arms_for():
    from dataclasses import replace

    data = results(a=BASE + 1 + NOISE, b=BASE, c=BASE)
    everywhere, elsewhere = claim(), replace(claim(), id="y", profiles=("standard",))
    both = study(everywhere, elsewhere)
    assert [v.claim.id for v in judge(both, data, "quick")] == ["x"]
    assert [v.claim.id for v in judge(both, data, "standard")] == ["x", "y"]
    assert [v.claim.id for v in judge(both, data)] == ["x", "y"]
    # The correction for several claims counts those that are judged.
    assert judge(both, data, "quick")[0].p_holm == judge(study(everywhere), data)[0].p_holm
