"""What training asks of a card: the backward passes of fused operators, most by torch's autograd."""

from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F

from .attention import attend
from .layers import rotate
from .table import Table, flag, optional, put, wide

table = Table()
kernel = table.kernel


def put_gradients(function, inputs: list, upstream: torch.Tensor, outputs: list) -> None:
    """Writes d(function)/d(input) times `upstream` for every input that has an output.

    On a thread of its own: operators that a backward pass calls may run where torch records no gradients.
    """

    def run() -> None:
        leaves = [wide(x).detach().float().requires_grad_() for x in inputs]
        value = function(*leaves)
        wanted = [(leaf, out) for leaf, out in zip(leaves, outputs) if optional(out) is not None]
        found = torch.autograd.grad(value, [leaf for leaf, _ in wanted], wide(upstream).float().reshape(value.shape))
        for gradient, (_, out) in zip(found, wanted):
            put(out.detach(), gradient)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()


@kernel("RmsNormGrad")
def rms_norm(upstream, x, deviation, weight, out, of_weight, *_):
    x, r, scaled = x.float(), wide(deviation), upstream.float() * weight.float()
    put(out, r * scaled - x * r**3 * (scaled * x).mean(-1, keepdim=True))
    put(of_weight, (upstream.float() * x * r).flatten(0, -2).sum(0))


@kernel("LayerNormBackward")
def layer_norm(upstream, x, shape, mean, deviation, weight, bias, wanted, *outputs):
    weight, bias = (wide(optional(tensor)) for tensor in (weight, bias))
    mask = [optional(out) is not None for out in outputs[:3]]
    about = (wide(upstream), wide(x), shape, wide(mean), wide(deviation), weight, bias, mask)
    for out, gradient in zip(outputs, torch.ops.aten.native_layer_norm_backward(*about)):
        if gradient is not None:
            put(out, gradient)


@kernel("MseLoss")
def mse_loss(x, target, reduction, out, *_):
    put(out, F.mse_loss(wide(x), wide(target), reduction=("none", "mean", "sum")[reduction & 0xFF]))


@kernel("MseLossBackward")
def mse_loss_gradient(upstream, x, target, reduction, out, *_):
    about = {"reduction": ("none", "mean", "sum")[reduction & 0xFF]}
    put_gradients(lambda x: F.mse_loss(x, wide(target), **about), [x], upstream, [out])


@kernel("SoftmaxBackward")
def softmax(upstream, softmaxed, dim, out, *_):
    scaled = wide(upstream) * wide(softmaxed)
    put(out, scaled - wide(softmaxed) * scaled.sum(dim, keepdim=True))


@kernel("SwiGluGrad")
def swiglu(upstream, x, dim, out, *_):
    def product(x):
        gate, up = x.chunk(2, dim)
        return F.silu(gate) * up

    put_gradients(product, [x], upstream, [out])


@kernel("GeluBackwardV2")
def gelu(upstream, x, approximate, out, *_):
    put_gradients(lambda x: F.gelu(x, approximate="tanh" if flag(approximate) else "none"), [x], upstream, [out])


@kernel("SiluBackward")
def silu(upstream, x, out, *_):
    put_gradients(F.silu, [x], upstream, [out])


@kernel("RotaryPositionEmbeddingGrad")
def rotary(upstream, cos, sin, x, mode, out, *_):
    x = upstream if optional(x) is None else x  # linear in x, whose values do not matter
    put_gradients(lambda x: rotate(x, wide(cos), wide(sin), mode), [x], upstream, [out])


@kernel("FlashAttentionScoreGrad", reals=True)
def flash_attention(
    reals, q, k, v, upstream, bias, drop, pad, mask, maxima, sums, softmax, attention, prefix, before, after, heads,
    layout, inner, sparse, of_q, of_k, of_v, *_,
):  # fmt: skip
    def run(q, k, v):
        return attend(q, k, v, bias, mask, reals[0], heads, layout, sparse)

    put_gradients(run, [q, k, v], upstream, [of_q, of_k, of_v])


# Of lists of tensors, as optimisers use them: the operands, then the outputs. A scalar may come as a tensor.
LISTS = {
    "Norm": lambda x, power: torch.linalg.vector_norm(x, power),
    "Sqrt": torch.sqrt,
    "AddScalar": torch.add,
    "DivScalar": torch.div,
    "DivScalarList": torch.div,
    "DivList": torch.div,
    "MulScalar": torch.mul,
    "MulScalarList": torch.mul,
    "MulList": torch.mul,
    "LerpScalar": torch.lerp,
    "AddcmulScalar": lambda x, a, b, value: x + value * a * b,
    "AddcmulScalarList": lambda x, a, b, value: x + value * a * b,
    "AddcdivScalar": lambda x, a, b, value: x + value * a / b,
    "AddcdivScalarList": lambda x, a, b, value: x + value * a / b,
}


def register_list(name: str, function) -> None:
    operands = (
        function.__code__.co_argcount if hasattr(function, "__code__") else {"Sqrt": 1, "LerpScalar": 3}.get(name, 2)
    )

    @kernel(f"Foreach{name}", f"Foreach{name}V2")
    def run(*arguments):
        *given, outputs = arguments[: operands + 1]
        for i, out in enumerate(outputs):
            put(out, function(*(value[i] if isinstance(value, list) else value for value in given)))


for _name, _function in LISTS.items():
    register_list(_name, _function)
