import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from gradatim.optim import GradNormCallback, read_trace, refine_schedule, refined_lambda_lr

STEPS = 8


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.linear(x)[:, 0] - labels).square().mean()}


def rows() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"x": torch.randn(4, generator=generator), "labels": torch.tensor(float(i % 3))} for i in range(64)
    ]


def trainer(tmp_path, scheduler_of, callback, steps: int = STEPS, **arguments) -> Trainer:
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {
        "output_dir": str(tmp_path / "out"), "max_steps": steps, "per_device_train_batch_size": 4,
        "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True,
        "gradient_accumulation_steps": 2, "logging_steps": 1, "dataloader_pin_memory": False,
        "max_grad_norm": 0.5, **arguments,
    }  # fmt: skip
    return Trainer(
        model,
        TrainingArguments(**settings),
        train_dataset=rows(),
        optimizers=(optimizer, scheduler_of(optimizer)),
        callbacks=[callback] if callback else [],
    )


def flat(optimizer):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


def test_callback_records_what_the_optimizer_sees(tmp_path) -> None:
    callback = GradNormCallback(norm=2, path=tmp_path / "norms.json")
    run = trainer(tmp_path, flat, callback)
    run.train()
    logged = [entry["grad_norm"] for entry in run.state.log_history if "grad_norm" in entry]
    # The Trainer logs norms before clipping; once per optimizer step, not per accumulated batch.
    expected = [min(float(g), 0.5) for g in logged]
    assert len(expected) == STEPS
    assert max(logged) > 0.5
    np.testing.assert_allclose(callback.trace.norms, expected, rtol=1e-4)
    back = read_trace(tmp_path / "norms.json")
    assert (back.norm_type, back.optimizer, back.batch_size, back.clip) == (2, "SGD", 8, 0.5)
    np.testing.assert_array_equal(back.norms, callback.trace.norms)


def test_trainer_follows_the_refined_schedule(tmp_path) -> None:
    norms = np.array([4.0, 2, 1, 1, 1, 1, 1, 1])
    factors = refine_schedule(norms, tau=0.01).factors
    used = []

    class Watch(GradNormCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
            used.append(kwargs["optimizer"].param_groups[0]["lr"])

    trainer(tmp_path, lambda o: refined_lambda_lr(o, norms, tau=0.01), Watch()).train()
    np.testing.assert_allclose(used, 0.1 * factors, atol=1e-12)


def test_resumed_trainer_goes_on_with_the_schedule(tmp_path) -> None:
    norms = np.array([4.0, 2, 1, 1, 1, 1, 1, 1])

    def build(optimizer):
        return refined_lambda_lr(optimizer, norms, tau=0.01)

    whole = trainer(tmp_path / "a", build, None)
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path / "b", build, None, **saving).train()
    resumed = trainer(tmp_path / "b", build, None, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "out" / "checkpoint-3"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_state_round_trip(tmp_path) -> None:
    norms = np.array([4.0, 2, 1, 1])
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = refined_lambda_lr(optimizer, norms)
    torch.save(scheduler.state_dict(), tmp_path / "s.pt")
    other = refined_lambda_lr(copy.deepcopy(optimizer), np.ones(4))
    other.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    assert other.lr_lambdas[0].factors == refine_schedule(norms).factors.tolist()


def test_a_finished_schedule_of_another_length_is_refused() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    with pytest.raises(ValueError, match="4 steps"):
        refined_lambda_lr(optimizer, refine_schedule(np.ones(4)), total_steps=5)
    assert refined_lambda_lr(optimizer, np.ones(4), total_steps=9).lr_lambdas[0](99) == 0.0
