"""The lines that train a network on the user's table with the winning schedule, in plain PyTorch."""

from __future__ import annotations

from gradatim.bench.study import Scale
from gradatim.compare.comparison import Winner
from gradatim.compare.estimator_code import estimator_code
from gradatim.compare.schedule import BATCH, HIDDEN, step_count
from gradatim.compare.table_source import load, read_code
from gradatim.compare.tabular_arms import preprocessing

SCHEDULERS = {
    "linear": ("from gradatim.optim import LinearDecayLR", "LinearDecayLR(optimizer, total_steps=steps)"),
    "cosine": (
        "from torch.optim.lr_scheduler import CosineAnnealingLR",
        "CosineAnnealingLR(optimizer, T_max=steps)",
    ),
    "inverse-sqrt": (
        "from torch.optim.lr_scheduler import LambdaLR",
        "LambdaLR(optimizer, lambda t: (t + 1) ** -0.5)",
    ),
    "flat": ("from torch.optim.lr_scheduler import ConstantLR", "ConstantLR(optimizer, factor=1.0)"),
}

TRAIN = """
def train(make_scheduler, record=False):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        {layers},
    )
    optimizer = {optimizer}
    scheduler = make_scheduler(optimizer)
    recorder = GradNormRecorder(optimizer, norm={norm}) if record else None
    for step in range(steps):
        rows = torch.randint(len(X), ({batch},))
        optimizer.zero_grad()
        torch.nn.functional.{loss}.backward()
        optimizer.step()
        scheduler.step()
    return model, recorder
"""


def winner_code(won: Winner, scale: Scale) -> str:
    """Runnable Python for the winner; for the constant, one line that says so."""
    if won.arm == "constant":
        return "# Predicting a constant did best: no schedule made this network learn the target."
    table = load(scale)
    classify = table.kind == "classification"
    variables = {"numeric": list(table.numeric), "categorical": list(table.categorical)}
    imports, columns = estimator_code(
        preprocessing(table.numeric, table.categorical), variables, name="columns"
    )
    features = " + ".join(name for name, values in variables.items() if values)
    target = f"table[{scale['target']!r}]"
    y = (
        f"torch.tensor(pd.factorize({target}, sort=True)[0])"
        if classify
        else "torch.tensor(((values - values.mean()) / values.std()).to_numpy(), dtype=torch.float32)"
    )
    rate = won.settings["rate"]
    sgd = scale["optimizer"] == "sgd"
    body = TRAIN.format(
        layers=_layers(len(set(table.target.tolist())) if classify else 1),
        optimizer=f"torch.optim.{'SGD' if sgd else 'AdamW'}(model.parameters(), lr={rate!r})",
        norm=2 if sgd else 1,
        batch=BATCH,
        loss="cross_entropy(model(X[rows]), y[rows])"
        if classify
        else "mse_loss(model(X[rows]).squeeze(1), y[rows])",
    )
    refined = won.arm == "refined"
    line, call = SCHEDULERS["linear" if refined else won.arm]
    if refined:
        line = "from gradatim.optim import GradNormRecorder, LinearDecayLR, RefinedLR"
        last = [
            f"_, recorder = train(lambda optimizer: {call}, record=True)",
            f"norms, power = recorder.norms(), {2.0 if sgd else 1.0}",
            "model, _ = train(lambda optimizer: RefinedLR(optimizer, norms, power=power))",
        ]
    else:
        body = body.replace(", record=False", "").replace("    return model, recorder", "    return model")
        body = "\n".join(text for text in body.splitlines() if "recorder" not in text)
        last = [f"model = train(lambda optimizer: {call})"]
    return "\n".join(
        [
            *sorted(["import pandas as pd", "import torch", *imports, line]),
            "",
            columns,
            read_code(scale),
            f"X = torch.tensor(columns.fit_transform(table[{features}]), dtype=torch.float32)",
            *([] if classify else [f"values = {target}.astype(float)"]),
            f"y = {y}",
            f"steps = {step_count(len(table.target), scale)}",
            body,
            "",
            *last,
        ]
    )


def _layers(outputs: int) -> str:
    return ",\n        torch.nn.ReLU(),\n        ".join(
        f"torch.nn.Linear({n}, {m})" for n, m in zip(("X.shape[1]", *HIDDEN), (*HIDDEN, outputs), strict=True)
    )
