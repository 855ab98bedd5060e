"""Auto classes know our models whatever is imported first, and importing our models stays cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

USE = """
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.for_model("gradatim_energy_transformer", vocab_size=5, hidden_size=4,
                              num_hidden_layers=1, num_attention_heads=1)
model = AutoModelForCausalLM.from_config(config)
assert type(model).__name__ == "EnergyTransformerForCausalLM", type(model)
assert type(AutoConfig.for_model("gradatim_hope")).__name__ == "HopeConfig"
lstm = AutoModelForCausalLM.from_config(AutoConfig.for_model("gradatim_lstm", vocab_size=5, hidden_size=4))
assert type(lstm).__name__ == "LSTMForCausalLM", type(lstm)
assert not [f for f in sys.meta_path if type(f).__module__.startswith("gradatim")]
"""


def run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_our_models_import_no_transformers_and_are_known_once_it_is_there() -> None:
    run("import gradatim.models\nassert 'transformers' not in sys.modules\n" + USE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoModelForCausalLM\nimport gradatim.models",
        "import gradatim.models\nfrom gradatim.models import EnergyTransformerForCausalLM",
        "import gradatim.models\nfrom transformers.models.llama import modeling_llama",
    ],
)
def test_the_auto_classes_know_our_models(first: str) -> None:
    run(first + USE)


def test_registering_again_does_no_harm() -> None:
    from transformers import AutoConfig

    from gradatim.models import EnergyTransformerConfig, register_auto_classes

    register_auto_classes()
    register_auto_classes()
    assert isinstance(AutoConfig.for_model("gradatim_energy_transformer"), EnergyTransformerConfig)
