"""The energy transformer for text beside the public code, beside itself without sharing, and Transformer++.

    python benchmarks/bench_energy_transformer.py --reference DIR      # DIR: a checkout of alexiglad/EBT

Both sides hold the same weights and start from the same state; before anything is timed, their logits are
compared. Without `--reference` the peer is the same work written here: context and predictions as one
sequence under a dense mask, run again at every step, and a gradient as wide as the vocabulary.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _timing import alternate, report, row
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from gradatim.models import EnergyTransformerConfig, EnergyTransformerForCausalLM
from gradatim.models.energy_attention import rotary
from gradatim.models.energy_recipe import ExtrapolatedStepsWarning
from gradatim.models.twice_differentiable import rotate

Peer = Callable[[Tensor, Tensor | None, int, bool], list[Tensor]]
"""peer(ids, first state or None to draw one, steps, learning) -> logits after every step."""


def written_here(model: EnergyTransformerForCausalLM) -> Peer:
    """One sequence [prefix; context; predictions] under a 2T x 2T mask, from the weights of `model`."""
    body, config = model.body, model.config

    def energies(ids: Tensor, p: Tensor, step: int) -> Tensor:
        time = ids.shape[1]
        h = torch.cat([body.embed_tokens(ids), p @ model.vocab_projection.weight], dim=1)
        positions = torch.cat([torch.arange(time), torch.arange(1, time + 1)])
        mask = torch.ones(time, time).tril().bool().repeat(2, 2)
        mask[:time, time:] = False
        mask[time:, time:] = torch.eye(time).bool()
        if config.step_embedding == "prefix":
            h = torch.cat([body.embed_steps.weight[step].expand(len(h), 1, -1), h], dim=1)
            positions = torch.cat([torch.tensor([0]), positions + 1])
            mask = F.pad(mask, (1, 0, 1, 0), value=True)
            mask[0, 1:] = False
        rotation = rotary(positions[None], config.hidden_size // config.num_attention_heads, 1e4, h.dtype)
        for layer in body.layers:
            x, a = layer.input_layernorm(h), layer.self_attn
            q, k, v = (a._split(part(x)) for part in (a.q_proj, a.k_proj, a.v_proj))
            scores = rotate(q, *rotation) @ rotate(k, *rotation).mT / q.shape[-1] ** 0.5
            mixed = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
            h = h + a.o_proj(mixed.transpose(1, 2).flatten(2))
            h = h + layer.mlp(layer.post_attention_layernorm(h))
        return body.energy_head(body.norm(h))[:, -time:]

    def run(ids: Tensor, z: Tensor | None, steps: int, learning: bool) -> list[Tensor]:
        found = []
        z = torch.randn(*ids.shape, config.vocab_size) if z is None else z
        for i in range(steps):
            with torch.enable_grad():
                p = z.detach().requires_grad_().softmax(-1)
                graph = learning and (not config.truncate or i == steps - 1)
                (g,) = torch.autograd.grad(energies(ids, p, i).sum(), p, create_graph=graph)
            z = p - model.step_size * g
            found.append(z)
        return found

    return run


def reference(folder: str, model: EnergyTransformerForCausalLM) -> tuple[Peer, nn.Module]:
    """The public `EBT_NLP` with the weights of `model`."""
    config = model.config
    public = _public_class(folder, config.vocab_size)
    settings = {
        "tokenizer": "", "execution_mode": "pretrain", "debug_unused_parameters": False,
        "embedding_dim": config.hidden_size, "num_transformer_blocks": config.num_hidden_layers,
        "multiheaded_attention_heads": config.num_attention_heads, "ffn_dim_multiplier": 1,
        "context_length": config.max_position_embeddings, "batch_size_per_device": 64,
        "weight_initialization_method": "xavier", "weight_initialization_gain": 1.0,
        "ebt_type": "time_embed" if config.step_embedding == "prefix" else "default",
        "ebt_norm": "rms", "ebt_act_func": "silu", "dyt_alpha_init": 0.5,
        "vocab_to_embed_uses_prob_dist": False, "num_modality_processing_mlp_layers": 1,
        "learnable_process_memory": False, "denoising_initial_condition": "random_noise",
        "gaussian_random_noise_scaling": 1.0, "normalize_initial_condition": True,
        "normalize_initial_condition_only_first_step": False, "mcmc_num_steps": config.num_steps,
        "mcmc_step_size": config.step_size, "mcmc_step_size_learnable": config.learn_step_size,
        "langevin_dynamics_noise": 0.0, "randomize_mcmc_step_size_scale": 1, "randomize_mcmc_num_steps": 0,
        "no_mcmc_detach": False, "truncate_mcmc": config.truncate, "clamp_futures_grad": False,
        "absolute_clamp": 0.0, "sharpen_predicted_distribution": 0.0, "mcmc_replay_buffer": False,
    }  # fmt: skip
    theirs = public(settings)
    own = theirs.state_dict()
    taken = {k: v for k, v in _their_names(model).items() if k in own}
    missing = sorted(set(own) - set(taken) - {"langevin_dynamics_noise_std"})
    if missing:
        raise SystemExit(f"the public model has weights that ours lacks: {missing}")
    theirs.load_state_dict({**own, **taken})

    def run(ids: Tensor, z: Tensor | None, steps: int, learning: bool) -> list[Tensor]:
        theirs.hparams.mcmc_num_steps = steps
        return theirs(ids, learning=learning, return_raw_logits=True, replay_buffer_logits=z)[0]

    return run, theirs


def _their_names(model: EnergyTransformerForCausalLM) -> dict[str, Tensor]:
    """Our weights by their names; their rotary pairs are neighbours, ours lie half a head apart."""
    heads = model.config.num_attention_heads

    def paired(w: Tensor) -> Tensor:
        return w.view(heads, 2, -1, w.shape[1]).transpose(1, 2).reshape(w.shape)

    found = {
        "alpha": model.step_size,
        "embeddings.weight": model.body.embed_tokens.weight,
        "vocab_to_embed.weight": model.vocab_projection.weight.T,
        "transformer.norm.weight": model.body.norm.weight,
        "transformer.final_layer.weight": model.body.energy_head.weight,
    }
    if model.body.embed_steps is not None:
        found["transformer.time_embeddings.weight"] = model.body.embed_steps.weight
    for i, layer in enumerate(model.body.layers):
        a, m, at = layer.self_attn, layer.mlp, f"transformer.layers.{i}."
        found |= {
            f"{at}attention.wq.weight": paired(a.q_proj.weight),
            f"{at}attention.wk.weight": paired(a.k_proj.weight),
            f"{at}attention.wv.weight": a.v_proj.weight,
            f"{at}attention.wo.weight": a.o_proj.weight,
            f"{at}feed_forward.w1.weight": m.gate_proj.weight,
            f"{at}feed_forward.w2.weight": m.down_proj.weight,
            f"{at}feed_forward.w3.weight": m.up_proj.weight,
            f"{at}attention_norm.weight": layer.input_layernorm.weight,
            f"{at}ffn_norm.weight": layer.post_attention_layernorm.weight,
        }
    return {k: v.detach().clone() for k, v in found.items()}


class _Anything(types.ModuleType):
    """A module of which anything can be imported: for packages that the text model never calls."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Settings(dict):
    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


class _Lightning(nn.Module):
    device = torch.device("cpu")

    @property
    def hparams(self) -> _Settings:
        return self.__dict__.setdefault("_settings", _Settings())


def _public_class(folder: str, vocab_size: int) -> type:
    """Their class, with stand-ins for packages and the tokenizer that the text model never calls."""
    names = (
        "torchvision", "torchvision.transforms", "torchvision.models", "torchvision.utils", "diffusers",
        "PIL", "torchmetrics", "pytorch_lightning", "timm", "timm.models", "timm.models.vision_transformer",
    )  # fmt: skip
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: _Anything(name) for name in names})
    sys.modules["pytorch_lightning"].LightningModule = _Lightning
    sys.path.insert(0, str(Path(folder)))
    try:
        for module in ("ar_ebt_default", "ar_ebt_time_embed", "ar_ebt_adaln"):
            importlib.import_module(f"model.{module}")
        from model.nlp import ebt
    finally:
        sys.path.pop(0)
        for name, known in before.items():
            if known is None:
                del sys.modules[name]
            else:
                sys.modules[name] = known
    words = type("Words", (), {"eos_token_id": 0, "__len__": lambda self: vocab_size})()
    ebt.AutoTokenizer = types.SimpleNamespace(from_pretrained=lambda *a, **k: words)
    return ebt.EBT_NLP


def peer_loss(peer: Peer, model: EnergyTransformerForCausalLM, ids: Tensor) -> Tensor:
    """The recipe's loss of the peer's logits, from a start that it draws; both sides descend T positions."""
    given, targets = ids[:, :-1], ids[:, 1:].flatten()
    found = peer(given, None, model.config.num_steps, True)
    losses = [F.cross_entropy(x.flatten(0, -2), targets) for x in found]
    return torch.stack(losses).mean() if model.config.loss_on == "all" else losses[-1]


def compare(model: EnergyTransformerForCausalLM, peer: Peer, ids: Tensor) -> float:
    """Largest difference of the final logits, relative to their size."""
    given = ids[:, :-1]
    z = torch.randn(*given.shape, model.config.vocab_size, generator=torch.Generator().manual_seed(0))
    model.eval()
    ours = model(given, initial_state=z).logits.detach()
    theirs = peer(given, z, model.config.num_steps, False)[-1].detach().view_as(ours)
    return float((ours - theirs).abs().max() / ours.abs().max())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", help="a checkout of alexiglad/EBT")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--think", type=int, default=10, help="steps of thinking")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore", ExtrapolatedStepsWarning)
    sizes = {
        "vocab_size": args.vocab, "hidden_size": args.width, "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads, "max_position_embeddings": 2 * args.length + args.new_tokens,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, args.vocab, (args.batch, args.length + 1), generator=generator)
    z = torch.randn(args.batch, args.length, args.vocab, generator=generator)
    name = "alexiglad/EBT" if args.reference else "written here, nothing shared"
    llama = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=args.width))
    plain = {"langevin_noise_std": 0.0, "step_size_jitter": 1.0, "num_steps_range": None}
    recipes = {
        "S1, 2 steps": EnergyTransformerConfig.system1(**sizes, step_size=50.0),
        "S2, 3 steps": EnergyTransformerConfig.system2(**sizes, **plain),
    }
    rows = []

    def step_of(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

        def step() -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        return step

    for recipe, config in recipes.items():
        model = EnergyTransformerForCausalLM(config, seed=0)
        peer, theirs = reference(args.reference, model) if args.reference else (written_here(model), model)
        gap = compare(model, peer, ids)
        print(f"{recipe}: logits differ by {gap:.1e} of their size")
        if gap > 1e-3:
            raise SystemExit("the two compute different things: no timing")
        trained = EnergyTransformerForCausalLM(config, seed=0).train()
        seconds = alternate(
            {
                "ours": step_of(trained, lambda m=trained: m(ids[:, :-1], labels=ids[:, :-1]).loss),
                name: step_of(theirs, lambda p=peer, m=model: peer_loss(p, m, ids)),
                "Transformer++": step_of(llama, lambda: llama(ids[:, :-1], labels=ids[:, :-1]).loss),
            },
            args.repeats,
            clock=args.clock,
        )  # fmt: skip
        rows.append(row(f"training step, {recipe}", seconds, "ours", name, ">= 1.5x"))
        rows.append(row(f"training step, {recipe}", seconds, "ours", "Transformer++", "printed"))

    model = EnergyTransformerForCausalLM(recipes["S2, 3 steps"], seed=0).eval()
    peer = reference(args.reference, model)[0] if args.reference else written_here(model)
    prompt, start = ids[:, :-1], z

    def recomputed() -> None:
        state = start
        for _ in range(args.think):
            state = model(
                prompt, initial_state=state, num_steps=1, output_energies=False, use_cache=False
            ).logits

    def grow(run: Callable[[Tensor], Tensor]) -> None:
        known = prompt
        for _ in range(args.new_tokens):
            known = torch.cat([known, run(known)[:, -1:].argmax(-1)], dim=1)

    def theirs_next(known: Tensor) -> Tensor:
        state = torch.zeros(*known.shape, args.vocab)
        return peer(known, state, 3, False)[-1].detach().view_as(state)

    fixed = {"max_new_tokens": args.new_tokens, "min_new_tokens": args.new_tokens, "do_sample": False}
    fixed |= {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        seconds = alternate(
            {
                "ours": lambda: model(
                    prompt, initial_state=start, num_steps=args.think, output_energies=False, use_cache=False
                ),
                "ours, context run at every step": recomputed,
                name: lambda: peer(prompt, start, args.think, False),
            },
            args.repeats,
            clock=args.clock,
        )
        think = f"thinking, {args.think} steps"
        rows.append(row(think, seconds, "ours", name, "printed"))
        rows.append(row(think, seconds, "ours", "ours, context run at every step", "printed"))
        print(f"tokens per second of {think}: {prompt.numel() / min(seconds['ours']):.0f}")
        seconds = alternate(
            {
                "ours": lambda: model.generate(prompt, **fixed),
                "ours, no cache": lambda: model.generate(prompt, use_cache=False, **fixed),
                name: lambda: grow(theirs_next),
                "Transformer++": lambda: llama.generate(prompt, **fixed),
            },
            max(1, args.repeats // 2),
            clock=args.clock,
        )
        made = f"generating {args.new_tokens} tokens after {args.length}"
        rows.append(row(made, seconds, "ours", name, ">= 3x"))
        rows.append(row(made, seconds, "ours", "ours, no cache", "printed"))
        rows.append(row(made, seconds, "ours", "Transformer++", "printed"))
    report("energy_transformer", "the energy transformer for text", rows, args.json)


if __name__ == "__main__":
    main()
