"""What the tokens of a block write to a self-modifying memory, one after the other, without a graph.

The same numbers as the sweeps of `self_reference`: on a processor with few cores a loop of small steps
costs less than sweeping a block a dozen times. Its derivative runs the loop backwards with the adjoint G_t
= dL/dPhi_t:

    Phi_t = a Phi - eta (Phi p) k^T:    dPhi = a G - eta (G k) p^T,  da = <G, Phi>,  deta = -(G k) . (Phi p),
                                        dk = -eta G^T Phi p,         dp = -eta Phi^T G k,
    u_t = Phi_(t-1) x_t:                dPhi += du x^T.

Tensors here are [heads, batch, ...], so that one product serves all samples of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-12  # added to squared norms, as in `unit`


def loop_forward(
    value: Tensor, x: Tensor, initial: Tensor, bias: Tensor, delta: bool, unit_values: bool, decay: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """k, v [batch, heads, C, d], eta and log a [batch, heads, C] of a block that starts at Phi = `value`."""
    batch, heads, size, d = x.shape
    phi = value.transpose(0, 1).reshape(heads * batch, d, d).clone()
    tokens = x.permute(2, 1, 0, 3).reshape(size, heads * batch, d, 1)
    made_by, offset = _output_layer(initial, bias)
    there = None if mask is None else mask.permute(2, 1, 0).expand(size, heads, batch).reshape(size, -1, 1, 1)
    pairs, logits = [], []
    for t in range(size):
        made = torch.baddbmm(offset, torch.bmm(phi, tokens[t]).view(heads, batch, d), made_by)
        pair = made[..., : 2 * d].reshape(-1, 2, d)
        scale = (pair * pair).sum(-1, keepdim=True).add_(SMALLEST).rsqrt_()
        if not unit_values:
            scale[:, 1] = 1.0
        pair = pair * scale
        rates = made[..., 2 * d :].reshape(-1, 2)
        pairs.append(pair)
        logits.append(rates)
        key, p = pair[:, :1], _left(pair, delta)
        eta, kept = torch.sigmoid(rates).unsqueeze(-1).unsqueeze(-1).unbind(1)
        if there is not None:
            eta = eta * there[t]
            kept = torch.where(there[t], kept, 1.0)
        write = torch.bmm(phi, p.unsqueeze(-1)).mul_(eta)
        if decay:
            phi.mul_(kept)
        phi.baddbmm_(write, key, alpha=-1)
    shape = (size, heads, batch)
    found = torch.stack(pairs).view(*shape, 2, d).permute(2, 1, 0, 3, 4)
    rates = torch.stack(logits).view(*shape, 2).permute(2, 1, 0, 3)
    eta, log_decay = torch.sigmoid(rates[..., 0]), torch.nn.functional.logsigmoid(rates[..., 1])
    if not decay:
        log_decay = torch.zeros_like(log_decay)
    if mask is not None:
        eta, log_decay = eta * mask, log_decay * mask
    return found[..., 0, :].contiguous(), found[..., 1, :].contiguous(), eta, log_decay


def loop_adjoint(
    value: Tensor, x: Tensor, initial: Tensor, bias: Tensor, delta: bool, unit_values: bool, decay: bool,
    mask: Tensor | None, z: tuple[Tensor, ...], gradients: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """lambda with lambda = gradients + (dF/dz)^T lambda, in the shapes of k, v, eta and log a."""
    batch, heads, size, d = x.shape
    rows = heads * batch

    def by_token(t: Tensor) -> Tensor:  # [batch, heads, C, ...] -> [C, rows, ...]
        return t.permute(2, 1, 0, *range(3, t.dim())).reshape(size, rows, *t.shape[3:])

    keys, values, eta, log_decay = (by_token(t) for t in z)
    pair = torch.stack([keys, values], dim=2)  # [C, rows, 2, d]
    kept = log_decay.exp()
    tokens = by_token(x)
    states = value.new_empty(size, rows, d, d)
    states[0] = value.transpose(0, 1).reshape(rows, d, d)
    p = pair[:, :, 0] - pair[:, :, 1] + (pair[:, :, 0] if delta else 0)
    drawn = value.new_empty(size, rows, d, 1)  # Phi p
    for t in range(size):
        torch.bmm(states[t], p[t].unsqueeze(-1), out=drawn[t])
        if t + 1 < size:
            torch.mul(states[t], kept[t, :, None, None], out=states[t + 1])
            states[t + 1].baddbmm_(drawn[t] * eta[t, :, None, None], keys[t].unsqueeze(1), alpha=-1)

    made_by, offset = _output_layer(initial, bias)
    addressed = (states @ tokens.unsqueeze(-1)).view(size, heads, batch, d)
    made = addressed @ made_by + offset
    before = made[..., : 2 * d].reshape(size, rows, 2, d)
    scale = (before * before).sum(-1, keepdim=True).add_(SMALLEST).rsqrt_()
    share = torch.sigmoid(made[..., 2 * d :].reshape(size, rows, 2))
    slope = torch.stack([share[..., 0] * (1 - share[..., 0]), 1 - share[..., 1]], dim=-1)
    if not decay:
        slope[..., 1] = 0
    if mask is not None:
        slope = slope * by_token(mask.expand(batch, heads, size)).unsqueeze(-1)
    back_by = initial[:, : 2 * d + 2]

    along = torch.stack([by_token(gradients[0]), by_token(gradients[1])], dim=2)  # dL/d(k, v)
    rates = torch.stack([by_token(gradients[2]), by_token(gradients[3])], dim=2)  # dL/d(eta, log a)
    right = torch.stack([p, tokens], dim=2)  # [C, rows, 2, d]
    adjoint = value.new_zeros(rows, d, d)
    for t in range(size - 1, -1, -1):
        if t < size - 1:
            pulled = torch.bmm(adjoint, keys[t].unsqueeze(-1))  # G k
            rate = eta[t, :, None, None]
            dp = torch.bmm(pulled.transpose(1, 2), states[t]).mul_(-rate)  # [rows, 1, d]
            dk = torch.bmm(drawn[t].transpose(1, 2), adjoint).mul_(-rate)
            along[t, :, 0] += (dk + (2 * dp if delta else dp)).squeeze(1)
            along[t, :, 1] -= dp.squeeze(1)
            rates[t, :, 0] -= (pulled * drawn[t]).sum((1, 2))
            rates[t, :, 1] += (adjoint * states[t]).sum((1, 2)).mul_(kept[t])
            first = pulled.mul_(-rate)
            adjoint.mul_(kept[t, :, None, None])
        else:
            first = adjoint.new_zeros(rows, d, 1)
        if t == 0:
            break
        into = along[t] - pair[t] * (along[t] * pair[t]).sum(-1, keepdim=True)
        into = into * scale[t]
        if not unit_values:
            into[:, 1] = along[t, :, 1]
        into = torch.cat([into.flatten(1), rates[t] * slope[t]], dim=1)
        du = torch.bmm(into.view(heads, batch, -1), back_by).view(rows, d, 1)
        adjoint.baddbmm_(torch.cat([first, du], dim=2), right[t])
    shape = (size, heads, batch)
    along = along.view(*shape, 2, d).permute(2, 1, 0, 3, 4)
    rates = rates.view(*shape, 2).permute(2, 1, 0, 3)
    return along[..., 0, :], along[..., 1, :], rates[..., 0], rates[..., 1]


def _left(pair: Tensor, delta: bool) -> Tensor:
    """2k - v, or k - v."""
    key, value = pair.unbind(1)
    return torch.lerp(value, key, 2.0) if delta else key - value


def _output_layer(initial: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """M_k, M_v, M_eta, M_alpha as one matrix [heads, d, 2d + 2] and its offset [heads, 1, 2d + 2]."""
    d = initial.shape[-1]
    offset = torch.cat([bias.new_zeros(len(bias), 2 * d), bias], dim=1).unsqueeze(1)
    return initial.transpose(1, 2).contiguous(), offset
