"""Our causal language models under `AutoConfig` and `AutoModelForCausalLM`, without waiting for Transformers.

Importing `PreTrainedModel` takes seconds, and most users of `gradatim.models` want none. So `import
gradatim.models` registers at once where Transformers' tables are already loaded, and otherwise leaves a note
with the import system: as soon as somebody imports those tables, ours are added to them. Whoever reads the
tables has imported them, so nobody sees them without our models. `register_auto_classes()` does it now.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_CONFIGS = "transformers.models.auto.configuration_auto"
_MODELS = "transformers.models.auto.modeling_auto"

CAUSAL_LANGUAGE_MODELS = (
    ("energy_config", "EnergyTransformerConfig", "energy_transformer", "EnergyTransformerForCausalLM"),
    ("hope_config", "HopeConfig", "hope", "HopeForCausalLM"),
    ("lstm_config", "LSTMConfig", "lstm_language_model", "LSTMForCausalLM"),
)
"""(module, configuration, module, model). Configurations sit in modules that import no model."""


def register_auto_classes() -> None:
    """Add our configurations and models to `AutoConfig` and `AutoModelForCausalLM`; again does no harm."""
    _register_configs()
    _register_models()


def register_when_needed() -> None:
    """Register as soon as Transformers' tables exist: now, or when they are imported."""
    waiting: dict[str, Callable[[], None]] = {}
    for name, register in ((_CONFIGS, _register_configs), (_MODELS, _register_models)):
        if name in sys.modules:
            register()
        else:
            waiting[name] = register
    if waiting and not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting(waiting))


def _register_configs() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    for module, name, _, _ in CAUSAL_LANGUAGE_MODELS:
        config = _load(module, name)
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models() -> None:
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    for config_module, config, module, name in CAUSAL_LANGUAGE_MODELS:
        AutoModelForCausalLM.register(_load(config_module, config), _load(module, name), exist_ok=True)


def _load(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"gradatim.models.{module}"), name)


class _Waiting(MetaPathFinder):
    """Finds nothing itself: it lets the usual finders find a module, and adds an act after its import."""

    def __init__(self, waiting: dict[str, Callable[[], None]]) -> None:
        self.waiting = waiting

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in self.waiting:
            return None
        register = self.waiting.pop(fullname)  # popped first: the search below comes past here again
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, register)
        return spec


class _Then(Loader):
    """A loader that calls `after` once the module has run."""

    def __init__(self, loader: Loader, after: Callable[[], None]) -> None:
        self.loader, self.after = loader, after

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.after()

    def __getattr__(self, name: str) -> Any:
        # Tools ask a loader for its source, file or package resources.
        return getattr(self.loader, name)
