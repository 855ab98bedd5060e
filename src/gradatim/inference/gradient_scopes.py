"""Which weights of a language model a gradient step may move."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

SCOPES = "all, all-but-embeddings, value:LAYER, layernorm, layer-causal"
_VALUE = re.compile(r"(^|\.)(v_proj|value|v|wv)$")


def scope_parameters(model: Any, scope: str) -> dict[str, nn.Parameter]:
    """The parameters of a scope by name, each once.

    - "all": every weight. Where input and output embeddings are tied, this moves the unembedding too.
    - "all-but-embeddings": every weight but the input and output embeddings.
    - "value:22": the value projection of one attention layer, counted from 0.
    - "layernorm": gains and biases of the norms.
    - "layer-causal": every weight of the decoder layers, each trained on its own layer's loss.

    Raises ValueError for anything else, and for a layer that does not exist or hides its value projection.
    """
    every = dict(model.named_parameters())
    if scope == "all":
        return every
    if scope == "all-but-embeddings":
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        skip = {id(p) for end in ends if end is not None for p in end.parameters()}
        return {name: p for name, p in every.items() if id(p) not in skip}
    if scope == "layernorm":
        inside = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)}
        return {name: p for name, p in every.items() if id(p) in inside}
    if scope == "layer-causal":
        inside = {id(p) for p in decoder_layers(model).parameters()}
        return {name: p for name, p in every.items() if id(p) in inside}
    if scope.startswith("value:"):
        inside = {id(p) for p in value_projection(model, value_layer(model, scope)).parameters()}
        return {name: p for name, p in every.items() if id(p) in inside}
    raise ValueError(f"unknown scope {scope!r}; there are {SCOPES}")


def value_layer(model: Any, scope: str) -> int:
    """The layer that "value:22" names. Raises ValueError where it is no number or no such layer exists."""
    number, count = scope.removeprefix("value:"), len(decoder_layers(model))
    if not number.isdigit() or int(number) >= count:
        raise ValueError(f"scope {scope!r} names no layer; the model has layers 0 to {count - 1}")
    return int(number)


def decoder_layers(model: Any) -> nn.ModuleList:
    """The list of decoder layers. Raises ValueError where the model has none that can be told."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {count} decoder layers")


def value_projection(model: Any, layer: int) -> nn.Module:
    """The module that computes the values of one layer.

    Raises ValueError where queries, keys and values come from one fused projection.
    """
    for name, module in decoder_layers(model)[layer].named_modules():
        if _VALUE.search(name) and getattr(module, "weight", None) is not None:
            return module
    raise ValueError(f"layer {layer} of {type(model).__name__} has no value projection of its own")


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a layer norm of any make."""
    return "norm" in type(module).__name__.lower()
