"""A study whose answer is known: arm `shift` beats `base` by exactly one, plus seeded noise."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from gradatim.bench import Arm, Claim, Contrast, Control, Curve, Level, Outcome, Profile, Study


def trial(arm, seed, scale):
    time.sleep(scale.get("sleep", 0.0))
    once = scale.get("die_once")
    if once and arm.name == "shift" and seed == 1 and not os.path.exists(once):
        open(once, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if scale.get("die_always") and arm.name == "shift" and seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if scale.get("crash") and arm.name == "shift" and seed == 1:
        raise ValueError("a crash on purpose")
    if scale.get("nan") and arm.name == "shift" and seed == 1:
        return Outcome({"score": float("nan")})
    if scale.get("hang") and arm.name == "shift" and seed == 1:
        time.sleep(30)
    noise = np.random.default_rng(seed).normal()
    score = (
        noise + arm.settings["add"] + 0.1 * np.random.default_rng([seed, 7]).normal() * arm.settings["add"]
    )
    return Outcome({"score": score}, {"loss": Curve([0, 1], [score, score / 2])})


def batch(arm, seeds, scale):
    return [trial(arm, seed, scale) for seed in seeds]


def make(batched=False, seeds=6, **scale):
    return Study(
        slug="toy",
        title="A toy",
        plain="Adds *one*.",
        rooms=("optim",),
        arms=(Arm("shift", {"add": 1.0}), Arm("base", {"add": 0.0}, role="baseline")),
        claims=(
            Claim(
                "shift-beats-base",
                "shift beats base",
                Contrast("shift", "base", "score"),
                Control("the base alone", Level("shift", "score", bound=-10.0)),
                paper=1.0,
            ),
        ),
        profiles={"quick": Profile(seeds=seeds, scale={"sleep": 0.0, **scale}, core_seconds=1, batch=4)},
        headline=(("score", "higher"),),
        **({"batch": batch} if batched else {"trial": trial}),
    )
