import numpy as np
import pytest
import torch
from torch import nn

from gradatim.optim import (
    DegenerateScheduleWarning,
    GradNormTrace,
    LinearDecayLR,
    RefinedLR,
    TableLR,
    refine_schedule,
)


def sgd(lr=1.0) -> torch.optim.SGD:
    return torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=lr)


def curve(optimizer: torch.optim.Optimizer, scheduler, steps: int) -> list[float]:
    used = []
    for _ in range(steps):
        used.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return used


class TestLinearDecay:
    def test_agrees_with_transformers_and_torch(self) -> None:
        """Theirs reaches 0 one step after the last; ours on it, so T+1 of our steps are T of theirs."""
        from torch.optim.lr_scheduler import LinearLR, PolynomialLR
        from transformers import get_linear_schedule_with_warmup

        T, peers = 20, []
        for build in (
            lambda o: LinearDecayLR(o, T + 1),
            lambda o: get_linear_schedule_with_warmup(o, 0, T),
            lambda o: PolynomialLR(o, T),
            lambda o: LinearLR(o, 1.0, 0.0, T),
        ):
            optimizer = sgd(0.3)
            peers.append(curve(optimizer, build(optimizer), T + 1))
        for peer in peers[1:]:
            np.testing.assert_allclose(peers[0], peer, atol=1e-12)

    def test_end_factor_moves_the_last_step(self) -> None:
        optimizer = sgd(2.0)
        used = curve(optimizer, LinearDecayLR(optimizer, 5, end_factor=0.2), 5)
        np.testing.assert_allclose(used, [2.0, 1.6, 1.2, 0.8, 0.4])

    def test_warmup_reaches_one_right_after_it(self) -> None:
        optimizer = sgd()
        used = curve(optimizer, LinearDecayLR(optimizer, 6, warmup_steps=2), 6)
        np.testing.assert_allclose(used, [1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3, 0.0])

    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            ((1,), "total_steps"),
            ((5, 4), "warmup_steps"),
            ((5, -1), "warmup_steps"),
            ((5, 0, 1.5), "end_factor"),
        ],
    )
    def test_bad_settings(self, arguments, names) -> None:
        with pytest.raises(ValueError, match=names):
            LinearDecayLR(sgd(), *arguments)

    def test_other_warmup_does_not_resume(self) -> None:
        with pytest.raises(ValueError, match="warmup_steps"):
            LinearDecayLR(sgd(), 10, 2).load_state_dict(LinearDecayLR(sgd(), 10).state_dict())


class TestTable:
    def test_takes_lists_arrays_and_tensors(self) -> None:
        for factors in ([1.0, 0.5], (1.0, 0.5), np.array([1.0, 0.5]), torch.tensor([1.0, 0.5])):
            assert TableLR(sgd(), factors).factors == [1.0, 0.5]

    @pytest.mark.parametrize(
        "factors", [[], np.ones((1, 1)), [1.0, -0.1], [1.0, float("nan")], [float("inf")]]
    )
    def test_bad_tables(self, factors) -> None:
        with pytest.raises(ValueError, match="factors must be"):
            TableLR(sgd(), factors)


class TestRefined:
    norms = np.concatenate([np.linspace(5, 1, 10), np.ones(90)])

    def test_is_the_refined_table_times_base(self) -> None:
        schedule = refine_schedule(self.norms, tau=0.05, power=1.0)
        for source, settings in (
            (self.norms, {"tau": 0.05, "power": 1.0}),
            (GradNormTrace(self.norms, norm_type=1), {"tau": 0.05}),
            (schedule, {}),
        ):
            optimizer = sgd(7.0)
            used = curve(optimizer, RefinedLR(optimizer, source, base=0.3, **settings), 100)
            np.testing.assert_allclose(used, 0.3 * schedule.factors, atol=1e-12)

    def test_base_none_keeps_each_groups_rate(self) -> None:
        groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (1.0, 10.0)]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        assert RefinedLR(optimizer, self.norms).base_lrs == [1.0, 10.0]
        assert RefinedLR(optimizer, self.norms, base=3).base_lrs == [3, 3]

    def test_base_of_tensor_rates_is_set_in_place(self) -> None:
        rate = torch.tensor(1.0)
        optimizer = sgd(rate)
        RefinedLR(optimizer, np.ones(4), base=0.25)
        assert optimizer.param_groups[0]["lr"] is rate
        assert float(rate) == 0.25

    def test_total_steps_stretches_a_trace_but_not_a_schedule(self) -> None:
        stretched = RefinedLR(sgd(), self.norms, total_steps=300)
        assert stretched.factors == refine_schedule(self.norms, steps=300).factors.tolist()
        with pytest.raises(ValueError, match="total_steps is 300"):
            RefinedLR(sgd(), refine_schedule(self.norms), total_steps=300)

    def test_a_finished_schedule_takes_no_settings(self) -> None:
        for settings in ({"tau": 0.1}, {"power": 2.0}, {"floor": 0.1}):
            with pytest.raises(ValueError, match="already"):
                RefinedLR(sgd(), refine_schedule(self.norms), **settings)

    def test_metadata_travels_with_the_state(self) -> None:
        trace = GradNormTrace(self.norms, norm_type=1, optimizer="AdamW", batch_size=32, clip=1.0)
        metadata = RefinedLR(sgd(), trace, tau=0.2).state_dict()["metadata"]
        kept = {k: metadata[k] for k in ("norm_type", "optimizer", "batch_size", "clip", "tau", "power")}
        assert kept == {
            "norm_type": 1, "optimizer": "AdamW", "batch_size": 32, "clip": 1.0, "tau": 0.2, "power": 1.0
        }  # fmt: skip
        assert metadata["digest"] == refine_schedule(trace, tau=0.2).digest
        assert metadata["version"]

    def test_guard_settings_pass_through(self) -> None:
        vanishing = np.geomspace(1, 1e-3, 100)
        with pytest.warns(DegenerateScheduleWarning):
            assert RefinedLR(sgd(), vanishing).metadata["fell_back"]
        with pytest.raises(ValueError, match="peaks"):
            RefinedLR(sgd(), vanishing, fallback="raise")

    @pytest.mark.parametrize("base", [-1.0, float("nan")])
    def test_bad_base(self, base: float) -> None:
        with pytest.raises(ValueError, match="base"):
            RefinedLR(sgd(), self.norms, base=base)
