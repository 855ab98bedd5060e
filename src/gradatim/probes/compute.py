"""How much a piece of code computes: floating-point operations of its matrix products, gradients included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def count_flops(run: Callable[[], Any]) -> int:
    """FLOPs of calling `run()` once: a product of [n, k] and [k, m] counts 2 n k m.

    Counted are matrix products and convolutions, by the formulas of `torch.utils.flop_counter`, wherever they
    happen: forward, backward, gradients of gradients. Not counted are norms, softmax and other element-wise
    work. While counting, fused attention and fused recurrent kernels are taken apart into products, so that
    every model is counted alike; what is only timed should run without this.

    (`FlopCounterMode` itself attributes counts to modules by hooks that refuse a gradient inside a forward
    pass, which is what energy models take.)
    """
    with sdpa_kernel(SDPBackend.MATH), _unfused(), _Counter() as counter:
        run()
    return counter.total


@contextmanager
def _unfused() -> Iterator[None]:
    # Not `mkldnn.flags`: it also sets what it was not asked to, and warns that it may not.
    before = torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before[0])


def _not_in_place(packet: Any) -> Any:
    """`addmm_` computes what `addmm` does, but has no formula of its own."""
    name = packet.__name__
    return getattr(torch.ops.aten, name[:-1], packet) if name.endswith("mm_") else packet


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = _not_in_place(func._overloadpacket)
        if packet not in flop_registry:
            # Under inference mode an operation arrives whole; its parts are what is counted.
            with self:
                found = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if found is NotImplemented else found
        out = func(*args, **kwargs)
        self.total += int(flop_registry[packet](*args, **kwargs, out_val=out))
        return out
