import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

from gradatim.optim import DegenerateScheduleWarning, GradNormTrace, RefinedSchedule, refine_schedule
from gradatim.optim.refinement import smooth
from gradatim.optim.shapes import linear, warmup_polynomial

traces = st.lists(st.floats(0.1, 10.0), min_size=2, max_size=40).map(np.array)


def brute_force(norms: np.ndarray, power: float, tau: float) -> np.ndarray:
    """Median window, weights and tail sums, element by element."""
    T = len(norms)
    half = int(tau * T / 2)

    def at(i: int) -> float:
        if i < 0:
            return float(norms[0])
        return float(norms[i] if i < T else norms[2 * (T - 1) - i])

    smoothed = [sorted(at(i) for i in range(t - half, t + half + 1))[half] for t in range(T)]
    w = [g**-power for g in smoothed]
    eta = [w[t] * sum(w[t + 1 :]) for t in range(T)]
    return np.array(eta) / max(eta)


@given(traces, st.sampled_from([1.0, 2.0, 0.5]), st.sampled_from([0.01, 0.1, 0.37, 1.0]))
@settings(deadline=None, max_examples=100)
def test_equals_the_loops(norms: np.ndarray, power: float, tau: float) -> None:
    ours = refine_schedule(norms, power=power, tau=tau, max_peak=1.0).factors
    np.testing.assert_allclose(ours, brute_force(norms, power, tau), atol=1e-12)


@pytest.mark.parametrize("tau", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("T", [2, 7, 1000])
def test_constant_norms_give_linear_decay(tau: float, power: float, T: int) -> None:
    schedule = refine_schedule(np.full(T, 0.37), tau=tau, power=power)
    np.testing.assert_allclose(schedule.factors, (T - np.arange(1, T + 1)) / (T - 1), atol=1e-12)
    assert (schedule.peak, schedule.fell_back) == (0, False)


def test_three_steps_by_hand() -> None:
    # w = 1, 2, 3: eta ~ 1*5, 2*3, 3*0.
    factors = refine_schedule(np.array([1.0, 2**-0.5, 3**-0.5]), power=2).factors
    np.testing.assert_allclose(factors, [5 / 6, 1.0, 0.0], atol=1e-12)


@given(traces, st.floats(1e-200, 1e200))
@settings(deadline=None, max_examples=60)
def test_only_the_shape_of_the_norms_matters(norms: np.ndarray, c: float) -> None:
    one = refine_schedule(norms, max_peak=1.0).factors
    np.testing.assert_allclose(refine_schedule(c * norms, max_peak=1.0).factors, one, atol=1e-9)


def profile(name: str) -> np.ndarray:
    """The synthetic norm profiles of the authors' code, as the sheet describes them."""
    x = [0.0, 0.003, 0.02, 0.03, 0.1, 1.0]
    end = {"b": 1.0, "c": 2.0, "d": 0.7}[name]
    norms = np.interp(np.arange(2000) / 2000, x, [15, 6, 4, 2, 1, end])
    return gaussian_filter1d(norms, 40, mode="nearest")


@pytest.mark.parametrize(
    ("name", "first", "peak", "halfway"),
    [("b", 0.0109, 0.135, 0.583), ("c", 0.0123, 0.121, 0.212), ("d", 0.0104, 0.150, 0.860)],
)
@pytest.mark.parametrize("tau", [1e-4, 0.1])
def test_golden_profiles(name: str, first: float, peak: float, halfway: float, tau: float) -> None:
    schedule = refine_schedule(profile(name), power=2, tau=tau)
    assert schedule.factors[0] == pytest.approx(first, abs=1.2e-3)
    assert schedule.warmup_fraction == pytest.approx(peak, abs=0.011)
    assert schedule.factors[1000] == pytest.approx(halfway, abs=0.012)


def test_profile_b_is_a_straight_line_beyond_its_warmup() -> None:
    f = refine_schedule(profile("b"), tau=1e-4).factors
    peak = int(np.argmax(f))
    line = np.interp(np.arange(2000), [peak, 1999], [1.0, 0.0])
    assert np.abs(f - line)[400:].max() < 0.009


def test_smoothing_ends() -> None:
    norms = np.array([9.0, 1.0, 5.0, 2.0, 7.0, 3.0])
    # Width 3: left neighbour of the first is itself, right neighbour of the last its mirror image 7.
    np.testing.assert_array_equal(smooth(norms, 0.34), [9, 5, 2, 5, 3, 7])
    np.testing.assert_array_equal(smooth(norms, 0.1), norms)


def test_smoothing_ignores_single_spikes() -> None:
    norms = np.ones(200)
    norms[[50, 120]] = [1e6, 1e-6]
    np.testing.assert_allclose(refine_schedule(norms).factors, linear(200), atol=1e-12)


class TestSeveralRuns:
    def test_one_run_is_the_same_with_and_without_its_axis(self) -> None:
        g = np.linspace(2, 1.5, 50)
        one = refine_schedule(g).factors
        np.testing.assert_array_equal(refine_schedule(g[None]).factors, one)
        for how in ("median", "mean", "geometric"):
            same = refine_schedule(np.stack([g, g, g]), over_runs=how).factors
            np.testing.assert_allclose(same, one, atol=1e-12)

    def test_time_constant_runs_of_any_level_give_linear_decay(self) -> None:
        runs = np.array([1.0, 5.0, 9.0])[:, None] * np.ones(30)
        for how in ("median", "mean", "geometric"):
            np.testing.assert_allclose(refine_schedule(runs, over_runs=how).factors, linear(30), atol=1e-12)

    def test_combination(self) -> None:
        runs = np.array([[1.0, 1, 1, 1], [2, 4, 2, 4], [9, 4, 2, 16]])
        for how, combined in {
            "median": np.median(runs, axis=0),
            "mean": runs.mean(axis=0),
            "geometric": runs.prod(axis=0) ** (1 / 3),
        }.items():
            np.testing.assert_allclose(
                refine_schedule(runs, over_runs=how, max_peak=1.0).factors,
                refine_schedule(combined, max_peak=1.0).factors,
                atol=1e-12,
            )

    def test_norm_types_do_not_mix(self) -> None:
        one, two = (GradNormTrace(np.ones(5), norm_type=p) for p in (1, 2))
        with pytest.raises(ValueError, match="L1, L2"):
            refine_schedule([one, two])

    def test_lengths_do_not_mix(self) -> None:
        with pytest.raises(ValueError, match="one length"):
            refine_schedule([GradNormTrace(np.ones(5)), GradNormTrace(np.ones(6))])

    def test_traces_and_arrays_do_not_mix(self) -> None:
        with pytest.raises(ValueError, match="not both"):
            refine_schedule([GradNormTrace(np.ones(5)), np.ones(5)])


class TestOtherLengths:
    def test_shape_is_kept(self) -> None:
        g = profile("b")
        long, short = refine_schedule(g).factors, refine_schedule(g, steps=200).factors
        assert short.shape == (200,)
        np.testing.assert_allclose(short, long[9::10] / long[9::10].max(), atol=0.02)

    def test_interpolates_on_t_over_T(self) -> None:
        g = np.array([1.0, 2.0, 3.0, 4.0])
        expected = refine_schedule(
            np.interp([0.125 * k for k in range(1, 9)], [0.25, 0.5, 0.75, 1], g), tau=1e-3
        )
        np.testing.assert_allclose(
            refine_schedule(g, tau=1e-3, steps=8).factors, expected.factors, atol=1e-12
        )

    def test_the_record_says_so(self) -> None:
        s = refine_schedule(np.ones(10), steps=30)
        assert (len(s), s.recorded_steps) == (30, 10)


class TestPowerFollowsTheNorm:
    def test_l1_trace_means_power_1(self) -> None:
        g = np.linspace(2, 1, 9)
        l1 = refine_schedule(GradNormTrace(g, norm_type=1, optimizer="AdamW"))
        assert (l1.power, l1.norm_type, l1.optimizer) == (1.0, 1, "AdamW")
        np.testing.assert_array_equal(l1.factors, refine_schedule(g, power=1).factors)

    def test_default_is_2(self) -> None:
        assert refine_schedule(np.ones(4)).power == 2.0
        assert refine_schedule(GradNormTrace(np.ones(4), norm_type=2)).power == 2.0

    def test_uneven_steps_are_put_on_an_even_grid(self) -> None:
        trace = GradNormTrace(np.array([4.0, 3.0, 1.0]), steps=np.array([0, 1, 3]))
        np.testing.assert_allclose(trace.on_even_grid(), [4, 2.5, 1])


class TestGuard:
    vanishing = np.geomspace(1.0, 1e-3, 400)

    def test_vanishing_norms_fall_back_to_linear_decay(self) -> None:
        with pytest.warns(DegenerateScheduleWarning, match="interpolates"):
            s = refine_schedule(self.vanishing)
        np.testing.assert_array_equal(s.factors, linear(400))
        assert s.fell_back
        assert "peaks" in s.degenerate

    def test_keep(self) -> None:
        with pytest.warns(DegenerateScheduleWarning, match="as it is"):
            s = refine_schedule(self.vanishing, fallback="keep")
        assert s.warmup_fraction > 0.5
        assert not s.fell_back
        np.testing.assert_allclose(s.factors, brute_force(self.vanishing, 2, 0.1), atol=1e-12)

    def test_raise(self) -> None:
        with pytest.raises(ValueError, match="peaks after"):
            refine_schedule(self.vanishing, fallback="raise")

    def test_max_peak_decides(self) -> None:
        late = refine_schedule(self.vanishing, max_peak=1.0)
        assert late.warmup_fraction > 0.5
        with pytest.warns(DegenerateScheduleWarning):
            refine_schedule(self.vanishing, max_peak=late.warmup_fraction - 0.01)

    def test_floor_tempers(self) -> None:
        s = refine_schedule(self.vanishing, floor=1.0)
        assert 0 < s.warmup_fraction <= 0.5
        expected = brute_force(
            np.maximum(smooth(self.vanishing, 0.1), np.median(smooth(self.vanishing, 0.1))), 2, 0
        )
        np.testing.assert_allclose(s.factors, expected, atol=1e-12)

    def test_all_zero(self) -> None:
        for how in ("linear", "keep"):
            with pytest.warns(DegenerateScheduleWarning, match="are 0"):
                s = refine_schedule(np.zeros(10), fallback=how)
            np.testing.assert_array_equal(s.factors, linear(10))
            assert s.fell_back

    @pytest.mark.parametrize("zeros", [slice(0, 5), slice(40, 45), slice(80, 100)])
    @pytest.mark.parametrize("floor", [0.0, 1e-12])
    def test_some_zeros_never_give_nan(self, zeros: slice, floor: float) -> None:
        g = np.ones(100)
        g[zeros] = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateScheduleWarning)
            s = refine_schedule(g, tau=0.01, floor=floor, fallback="keep", power=3.0)
        assert np.isfinite(s.factors).all()
        assert s.factors.max() == 1.0

    def test_good_traces_pass_silently(self) -> None:
        assert refine_schedule(profile("b")).degenerate == ""


@given(traces)
@settings(deadline=None, max_examples=60)
def test_factors_are_a_schedule(norms: np.ndarray) -> None:
    f = refine_schedule(norms, max_peak=1.0).factors
    assert f.dtype == np.float64
    assert f.min() >= 0
    assert f.max() == 1.0
    assert f[-1] == 0.0


@pytest.mark.parametrize(
    ("norms", "settings_", "names"),
    [
        ([1.0], {}, "at least 2"),
        ([1.0, -1.0], {}, "step 1"),
        ([1.0, math.nan], {}, "nan"),
        ([[1.0, 1.0], [math.inf, 1.0]], {}, "run 1"),
        (np.ones((2, 2, 2)), {}, "shape"),
        ([1.0, 1.0], {"tau": 0.0}, "tau"),
        ([1.0, 1.0], {"tau": 1.5}, "tau"),
        ([1.0, 1.0], {"power": 0.0}, "power"),
        ([1.0, 1.0], {"steps": 1}, "steps"),
        ([1.0, 1.0], {"floor": -1.0}, "floor"),
        ([1.0, 1.0], {"max_peak": 0.0}, "max_peak"),
    ],
)
def test_bad_input_is_refused(norms, settings_, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        refine_schedule(np.asarray(norms), **settings_)


def test_takes_tensors_of_any_kind() -> None:
    g = np.linspace(2, 1, 20)
    expected = refine_schedule(g).factors
    np.testing.assert_allclose(
        refine_schedule(torch.tensor(g, dtype=torch.float32)).factors, expected, atol=1e-6
    )
    np.testing.assert_allclose(refine_schedule(torch.tensor(g).bfloat16()).factors, expected, atol=0.05)
    np.testing.assert_allclose(refine_schedule(torch.tensor(g, requires_grad=True)).factors, expected)
    np.testing.assert_allclose(refine_schedule(g.tolist()).factors, expected)


class TestSchedule:
    def test_fit_poly_recovers_the_two_number_shape(self) -> None:
        for warmup, exponent in ((0.28, 1.0), (0.45, 0.8), (0.01, 3.0), (0.0, 1.5)):
            factors = warmup_polynomial(1000, warmup=warmup, exponent=exponent)
            fitted = RefinedSchedule(factors, 2.0, 0.1, 0.0, 1000).fit_poly()
            assert fitted == pytest.approx((warmup, exponent, 1.0), abs=1e-3)

    def test_fit_poly_of_nothing(self) -> None:
        assert math.isnan(RefinedSchedule(np.array([0.5, 1.0, 0.0]), 2.0, 0.1, 0.0, 3).fit_poly()[1])

    def test_bound_is_that_of_its_factors(self) -> None:
        s = refine_schedule(np.ones(2000))
        assert s.bound(np.ones(2000)) * math.sqrt(2000) == pytest.approx(2.0038, abs=1e-4)

    def test_round_trip(self, tmp_path) -> None:
        s = refine_schedule(
            GradNormTrace(np.linspace(2, 1, 9), norm_type=1, optimizer="Adam", clip=1.0, batch_size=4)
        )
        s.save(tmp_path / "s.json")
        back = RefinedSchedule.load(tmp_path / "s.json")
        assert back.to_dict() == s.to_dict()
        assert back.digest == s.digest
        assert (back.clip, back.batch_size, back.norm_type) == (1.0, 4, 1)
        assert [p.name for p in tmp_path.iterdir()] == ["s.json"]

    def test_is_read_only(self) -> None:
        with pytest.raises(ValueError, match="read-only"):
            refine_schedule(np.ones(3)).factors[0] = 2.0

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "{}",
            '{"format": "gradatim.schedule/1"}',
            "[" * 100_000,
            '{"format": "gradatim.schedule/1", "factors": [1, 2], "power": 2, "tau": 1, "floor": 0,'
            ' "recorded_steps": 2}',
            '{"format": "gradatim.schedule/1", "factors": "x", "power": 2, "tau": 1, "floor": 0,'
            ' "recorded_steps": 2}',
        ],
        ids=["empty", "list", "object", "no factors", "deep", "above 1", "text"],
    )
    def test_other_files_are_refused_by_name(self, tmp_path, text: str) -> None:
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(ValueError, match=r"s\.json"):
            RefinedSchedule.load(tmp_path / "s.json")


def test_interpolating_digits_trigger_the_guard() -> None:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    data = torch.tensor((x - x.mean(0)) / (x.std(0) + 1e-9), dtype=torch.float32)
    labels = torch.tensor(y)
    generator = torch.Generator().manual_seed(0)
    w = torch.zeros(64, 10)
    steps, norms = 8 * (len(y) // 16), []
    for t in range(steps):
        rows = torch.randint(len(y), (16,), generator=generator)
        p = torch.softmax(data[rows] @ w, 1)
        p[torch.arange(16), labels[rows]] -= 1
        g = data[rows].T @ p / 16
        norms.append(float(g.norm()))
        w -= 5.0 * (1 - t / steps) * g
    with pytest.warns(DegenerateScheduleWarning):
        s = refine_schedule(norms)
    np.testing.assert_array_equal(s.factors, linear(steps))
