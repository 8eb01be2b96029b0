"""The passes that training takes through our modules: adapters, recomputed layers and the head, with little memory.

They are cheaper than the modules' own: an adapted layer is three products and nothing between them, the recomputation
of a half layer ends before its last product, layers that memory has room for keep the widest one, and then all keep
what attention gives to long sequences, most layers' inputs are added up again, the gradient of the feed-forward's gate
is written in place, and logits are never kept.
Shapes: B images, T tokens, H hidden size, N tokens that count, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ...pipeline.devices import kernels
from ...pipeline.devices.kernels import CAUSAL
from ...pipeline.models.planner import DecoderLayer, LanguageModel
from .adapters import NAME, adapted_layers
from .residuals import Residuals

LOGITS = 1 << 20  # numbers of the logits that are alive at once
CACHED = 1 << 16  # numbers of the widest product that a CPU's cache holds, with what is computed of them


class NoCache:
    """Stands in for the key-value cache where the whole sequence runs at once and gradients are wanted."""

    @staticmethod
    def update(_layer: int, keys, values, _position, _read):
        return keys, values


def streamline(module: torch.nn.Module) -> None:
    """Let adapted layers compute as `adapted_linear` does, which is what peft's do, in fewer passes."""
    for layer in adapted_layers(module).values():
        layer.forward = _Adapted(layer)


class _Adapted:
    def __init__(self, layer):
        self.base, self.scale = layer.get_base_layer(), layer.scaling[NAME]
        self.down, self.up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return adapted_linear(x, self.base.weight, self.base.bias, self.down, self.up, self.scale)


def adapted_linear(x, weight, bias, down, up, scale: float) -> torch.Tensor:
    """(..., in) -> (..., out): x (W + scale * up down)^T + bias; float32 `down` (r, in), `up` (out, r).

    The large product comes last, since recomputation stops once everything that gradients need is there. It is added in
    place, which spares a copy.
    """
    rows = x.flatten(0, -2)
    low = rows @ down.to(x.dtype).t()
    up = (scale * up).to(x.dtype).t()
    small = low @ up if bias is None else torch.addmm(bias, low, up)
    return small.addmm_(rows, weight.t()).unflatten(0, x.shape[:-1])


def run_language_model(
    model: LanguageModel,
    embedded: torch.Tensor,
    tables,
    mask: torch.Tensor | None,
    last: int,
    checkpointing: bool,
    keep: int = 0,
) -> torch.Tensor:
    """(B, T, H) embeddings -> (B, N, H) hidden states of the `last` N tokens.

    `mask` is (B, 1, T, T), None for a causal one. `keep` of the layers keep their feed-forward's widest
    product, which costs more to compute again than anything else of its size but attention over long sequences: that is
    kept in all layers then, unless `keep` is 0.
    """
    x, length = embedded, embedded.shape[1]
    about = (*tables, CAUSAL if mask is None else mask, NoCache, 0, 0, length)
    residuals = Residuals(lambda i, *parts: _sum(model.layers[i], *parts))
    with residuals.saving() if checkpointing else nullcontext():
        for i, layer in enumerate(model.layers[:-1], 1):
            residuals.enter(x)
            kept = i >= len(model.layers) - keep, keep and keeps_attention(*x.shape[1:])
            attended, fed = _halves(layer, x, about, length, checkpointing, *kept)
            x = _sum(layer, x, attended, fed)
            residuals.leave(attended, fed)
        # The backward pass begins with the last layer: whatever it keeps would be there at that moment anyway.
        residuals.enter(x)
        given = _halves(model.layers[-1], x, about, last, checkpointing=False)
        residuals.leave(*given)
        return model.norm(_sum(model.layers[-1], x[:, -last:], *given))


def _halves(layer: DecoderLayer, x, about: tuple, last: int, checkpointing: bool, keep=True, keep_attention=False):
    """What the halves of a decoder layer give to the `last` tokens. That is kept, which no half keeps: the sum between
    them, which the second needs, is computed again.
    """

    def attention(x):
        return layer.self_attn(layer.input_layernorm(x), *about)

    def gate_up(*parts):
        return layer.mlp.gate_up_proj(layer.post_attention_layernorm(_middle(layer, *parts)))

    def down(gate_up):
        return layer.mlp.down_proj(swiglu(gate_up))

    run = recomputed if checkpointing else (lambda half, *parts: half(*parts))
    attend = partial(recomputed, keep_attention=keep_attention) if checkpointing else run
    parts = [part[:, -last:] for part in (x, attend(attention, x))]
    fed = run(down, gate_up(*parts)) if keep else run(lambda *parts: down(gate_up(*parts)), *parts)
    return parts[1], fed


def _middle(layer: DecoderLayer, x, attended) -> torch.Tensor:
    return x + layer.post_self_attn_layernorm(attended)


def _sum(layer: DecoderLayer, x, attended, fed) -> torch.Tensor:
    """The layer's input and what its halves gave -> the input of the next."""
    return _middle(layer, x, attended) + layer.post_mlp_layernorm(fed)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """`kernels.swiglu`, whose gradient takes fewer passes and less memory where it is made of plain operators.

    `gate_up` must be nobody else's: its gradient is written over it.
    """
    return kernels.swiglu(gate_up) if gate_up.device.type == "npu" else _Swiglu.apply(gate_up)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        product = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        for (gate, up), part in zip(_pieces(gate_up), _rows(product, gate_up), strict=True):
            torch.mul(F.silu(gate), up, out=part)
        return product

    @staticmethod
    def backward(ctx, of_product):
        (gate_up,) = ctx.saved_tensors
        for (gate, up), part in zip(_pieces(gate_up), _rows(of_product, gate_up), strict=True):
            of_activation = part * up
            torch.mul(part, F.silu(gate), out=up)
            torch.ops.aten.silu_backward.grad_input(of_activation, gate, grad_input=gate)
        return gate_up


def _pieces(gate_up: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return (rows.chunk(2, dim=-1) for rows in _rows(gate_up, gate_up))


def _rows(of: torch.Tensor, gate_up: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`of` (B, T, ...) as views of some tokens each: on a CPU so few that its cache holds what is done to them."""
    tokens = of.flatten(0, -2)
    return tokens.split(max(1, CACHED // gate_up.shape[-1]) if of.device.type == "cpu" else len(tokens))


def keeps_attention(length: int, width: int) -> bool:
    """Whether keeping what attention gives spares more work for its memory than the feed-forward's product does.

    A number of the first is a sum over half of `length` tokens, twice (scores and values), of the other one over
    `width` channels.
    """
    return length > width


def recomputed(function, *inputs, keep_attention: bool = False):
    """`function(*inputs)`, of which only the inputs are kept, and what attention gives if asked for; what gradients
    need is computed again.
    """
    more = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)} if keep_attention else {}
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, **more)


def _policy(_context, operator, *_, **_more) -> CheckpointPolicy:
    attends = "attention" in operator.name()  # by whichever kernel
    return CheckpointPolicy.MUST_SAVE if attends else CheckpointPolicy.PREFER_RECOMPUTE


def head_loss(hidden, weight, targets, weights) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Hidden states (N, H), the head (V, H), targets and their weights (N,) -> (the weighted sum of cross-entropies,
    each of them), and 1.0 wherever the target was the likeliest.
    """
    loss, losses, hits = _HeadLoss.apply(hidden, weight, targets, weights)
    return (loss, losses), hits


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy over a frozen head, whose gradient is computed on the way, some tokens at a time."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, weights):
        losses = torch.empty(len(hidden), device=hidden.device)
        hits, gradient = torch.empty_like(losses), torch.empty_like(hidden)
        rows = max(1, LOGITS // len(weight))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = F.linear(hidden[part], weight).float()
            wanted = targets[part, None]
            hits[part] = (logits.argmax(-1, keepdim=True) == wanted).float()[:, 0]
            shares = logits.log_softmax(-1)
            losses[part] = -shares.gather(1, wanted)[:, 0]
            share = shares.exp_()
            share.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=share.dtype))
            gradient[part] = share.mul_(weights[part, None]).to(hidden.dtype) @ weight
            del logits, shares, share  # or the next ones are made beside them
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(losses, hits)
        return (losses * weights).sum(), losses, hits

    @staticmethod
    def backward(ctx, of_loss, *_):
        (gradient,) = ctx.saved_tensors
        return gradient * of_loss.to(gradient.dtype), None, None, None
