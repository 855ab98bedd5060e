"""RMSNorm, SwiGLU's gate and rotary positions with their first and second derivatives in closed form.

A model that is trained through its own gradient differentiates every operation twice. Left to autograd, each
of these becomes dozens of passes over memory; written out, a handful. The formulas of the second derivative
are themselves plain operations, so that higher ones exist too. Under forward-mode differentiation,
`torch.func` and `torch.compile` the plain expressions take over.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from gradatim.models.fast_linear import weights_wanted


def rms_norm(
    x: Float[Tensor, "*batch width"], weight: Float[Tensor, " width"], epsilon: float
) -> Float[Tensor, "*batch width"]:
    """y = w x / sqrt(mean(x^2) + epsilon), over the last dimension."""
    if _plain(x, weight):
        return F.rms_norm(x, weight.shape, weight, epsilon)
    found: Tensor = _RMSNorm.apply(x, weight, epsilon)
    return found


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` by `rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        assert self.weight is not None
        return rms_norm(x, self.weight, self.eps or torch.finfo(x.dtype).eps)


def gate(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """SiLU(a) b, with SiLU(a) = a / (1 + exp(-a))."""
    if _plain(a, b):
        return F.silu(a) * b
    found: Tensor = _Gate.apply(a, b)
    return found


def rotate(
    x: Float[Tensor, "*batch size"], cos: Float[Tensor, "*#batch size"], sin: Float[Tensor, "*#batch size"]
) -> Float[Tensor, "*batch size"]:
    """Turn entry i of the first half with entry i of the second by an angle; cos and sin of it, for both."""
    if _plain(x, cos, sin) or cos.requires_grad or sin.requires_grad:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin
    found: Tensor = _Rotation.apply(x, cos, sin, 1.0)
    return found


class _RMSNorm(torch.autograd.Function):
    """With r = (mean(x^2) + eps)^(-1/2) and n = r x: y = n w, dx = r (w g - n mean(n w g)), dw = sum(n g)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = _widened(x)
        r = (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        ctx.epsilon = epsilon
        return (wide * r).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g,) = gradients
        x, weight, r = ctx.saved_tensors
        if not torch.is_grad_enabled():
            n = _widened(x) * r
            wanted = ctx.needs_input_grad[1] and weights_wanted()
            to_weight = _rows(g * n.to(g.dtype)) if wanted else None
            return _slope_of_norm(n, r, _widened(g * weight)).to(x.dtype), to_weight, None
        dx, dw = _RMSNormSlope.apply(g, x, weight, r.detach(), ctx.epsilon)
        return dx, dw, None


class _RMSNormSlope(torch.autograd.Function):
    """(dx, dw) above as a function of g, x and w.

    For u beside dx, with h = w g and means m_u = mean(n u), m_h = mean(n h), a = mean(u h):
    S = sum(u dx) has dS/dh = r (u - n m_u) and dS/dx = -r^2 (n (a - 3 m_u m_h) + m_h u + m_u h).
    For v beside dw: sum(v dw) = sum(v g n) has dg = v n and dx that of a norm with the weight v.
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, r: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(g, x, weight, r)
        ctx.epsilon = epsilon
        ctx.set_materialize_grads(False)
        n = _widened(x) * r
        to_weight = _rows(g * n.to(g.dtype)) if weights_wanted() else None
        return _slope_of_norm(n, r, _widened(g * weight)).to(x.dtype), to_weight

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        u, v = gradients
        g, x, weight, r = ctx.saved_tensors
        wide, h = _widened(x), _widened(g * weight)
        if torch.is_grad_enabled():  # the known r is a constant, of which no third derivative comes
            r = (wide.square().mean(-1, keepdim=True) + ctx.epsilon).rsqrt()
        n = wide * r
        to_g: Tensor | None = None
        to_x: Tensor | None = None
        to_weight: Tensor | None = None
        if u is not None:
            u = _widened(u)
            m_u, m_h, a = ((p * q).mean(-1, keepdim=True) for p, q in ((n, u), (n, h), (u, h)))
            to_h = (r * torch.addcmul(u, n, m_u, value=-1)).to(x.dtype)
            turned = torch.addcmul(torch.addcmul(n * (a - 3 * m_u * m_h), u, m_h), h, m_u)
            to_x = -r.square() * turned
            to_g, to_weight = to_h * weight, _rows(to_h * g)
        if v is not None:
            along = _slope_of_norm(n, r, _widened(v * g))
            to_x = along if to_x is None else to_x + along
            to_g = (n.to(x.dtype) * v) if to_g is None else to_g + n.to(x.dtype) * v
        return to_g, None if to_x is None else to_x.to(x.dtype), to_weight, None, None


def _slope_of_norm(n: Tensor, r: Tensor, h: Tensor) -> Tensor:
    """r (h - n mean(n h))."""
    return r * torch.addcmul(h, n, (n * h).mean(-1, keepdim=True), value=-1)


class _Gate(torch.autograd.Function):
    """y = f(a) b with f = SiLU: da = g b f'(a), db = g f(a)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return F.silu(a).mul_(b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (g,) = gradients
        a, b = ctx.saved_tensors
        if torch.is_grad_enabled():
            da, db = _GateSlope.apply(g, a, b)
            return da, db
        return torch.ops.aten.silu_backward(g * b, a), g * F.silu(a)


class _GateSlope(torch.autograd.Function):
    """(da, db) above as a function of g, a and b.

    For u beside da and v beside db, S = sum(u g b f' + v g f): dg = u b f' + v f, da = g (u b f'' + v f'),
    db = u g f'; with s = 1 / (1 + exp(-a)): f = a s, f' = s + f (1 - s), f'' = s (1 - s) (2 + a - 2 f).
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(g, a, b)
        return torch.ops.aten.silu_backward(g * b, a), g * F.silu(a)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, v = gradients
        g, a, b = ctx.saved_tensors
        s = torch.sigmoid(a)
        f = a * s
        rest = 1 - s
        first = s + f * rest
        second = s * rest * (2 + a - 2 * f)
        ub = u * b
        return ub * first + v * f, g * (ub * second + v * first), u * g * first


class _Rotation(torch.autograd.Function):
    """A rotation; its transpose is the rotation back, at every order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.sign = sign
        # Contiguous whatever the layout of x: what follows is a batched matrix product.
        out = torch.mul(x, cos, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))
        (first, second), (low, high), (s, t) = (y.chunk(2, dim=-1) for y in (x, out, sin))
        low.addcmul_(second, s, value=-sign)
        high.addcmul_(first, t, value=sign)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _Rotation.apply(gradients[0], cos, sin, -ctx.sign), None, None, None


def _rows(x: Tensor) -> Tensor:
    """The sum over all dimensions but the last."""
    return x.flatten(0, -2).sum(0)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _plain(*tensors: Tensor) -> bool:
    """Whether the closed forms do not apply."""
    return (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or any(t.dtype != tensors[0].dtype for t in tensors)
        or any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)
    )
