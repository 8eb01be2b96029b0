"""Linear layers whose weights are stored in 8 or 4 bits, and which layers of planner and decoder are.

W8: codes of 8 bits and one scale a row. W4: codes of 4 bits and a scale and a zero for every 32 of a row. Inputs and
results keep their dtype. Attributes are the keys of the file: W8 is ComfyUI's `int8_tensorwise` with a scale a row, so
that its core reads such a file too. Scales and zeros are numbers that bfloat16 has, and lose nothing in any dtype.
Embeddings, norms, the vision tokenizer and the decoder's first and last layers are small or sensitive and stay as
they are. In W4 the planner's attention and head have 8 bits, for its choices depend on them most.
"""

import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import nn

from ..devices import fbgemm_products, kernels
from ..devices.quantised_products import GROUP, pack_int4, packed_int4_linear, slow_reason, widened_int4

logger = logging.getLogger(__name__)

LARGEST = 127  # of a code of 8 bits, on either side of zero
STEPS, MIDDLE = 15, 8  # between the smallest and the largest code of 4 bits; the code that stands for its zero
FITS = 4  # of scale and zero to a group's codes, which spare an eighth of the squared error
SMALLEST = 2.0**-24  # of scales, which float16 still has
ATTENTION = r"model\.language_model\.layers\.\d+\.self_attn\.\w+|lm_head"
MLP = r"model\.language_model\.layers\.\d+\.mlp\.\w+"
BLOCKS = r"transformer_blocks\.\d+\.(norm1|attn1|ff)\.[\w.]+"
LAYERS = {  # form of a component -> form of a layer -> the names of these layers
    "w8": {"w8": re.compile("|".join((ATTENTION, MLP, BLOCKS)))},
    "w4": {"w8": re.compile(ATTENTION), "w4": re.compile(f"{MLP}|{BLOCKS}")},
}
FORMS = tuple(LAYERS)


class CodedLinear(nn.Module):
    """A linear layer of codes that may have a LoRA beside them: `lora_up` (out, R), `lora_down` (R, in) and `lora_gain`
    (out,), parameters in the dtype that it computes in; `models/lora.py` makes them.
    """

    def __init__(self):
        super().__init__()
        for name in ("lora_up", "lora_down", "lora_gain"):
            self.register_parameter(name, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        if self.lora_up is None:
            return self.product(x, self.bias)
        y = self.product(x, None)
        if self.lora_gain is not None:
            y = y * self.lora_gain.to(x.dtype)
        y = y + F.linear(F.linear(x, self.lora_down.to(x.dtype)), self.lora_up.to(x.dtype))
        return y if self.bias is None else y + self.bias

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """(..., in) times the codes' numbers -> (..., out), plus `bias`."""
        raise NotImplementedError

    def numbers(self, rows: slice) -> torch.Tensor:
        """What the codes of some rows stand for, float32 (rows, in); not after `pack`."""
        raise NotImplementedError

    @property
    def packed_for_cpu(self) -> bool:
        """Whether the codes are in the order of a CPU's own product."""
        raise NotImplementedError


class W8Linear(CodedLinear):
    """A linear layer of int8 `weight` (out, in) and `weight_scale` (out, 1) in the dtype that it computes in.

    After `pack` on a CPU the codes are in `packed`, in the order of FBGEMM, and `weight` has no rows.
    """

    form = "w8"
    packed: torch.ScriptObject | None = None

    def __init__(self, width: int, out: int, bias: bool, dtype: torch.dtype | None = None):
        super().__init__()
        self.weight = _constant(torch.empty(out, width, dtype=torch.int8))
        self.weight_scale = _constant(torch.empty(out, 1, dtype=dtype))
        self.bias = _constant(torch.empty(out, dtype=dtype)) if bias else None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in); not after `pack`."""
        return tuple(self.weight.shape)

    @property
    def packed_for_cpu(self) -> bool:
        return self.packed is not None

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.packed_for_cpu:
            return fbgemm_products.linear(x, self.packed, bias)
        return kernels.int8_linear(x, self.weight, self.weight_scale.view(-1).to(x.dtype), bias)

    def pack(self) -> None:
        """Bring the codes into the order of a CPU's own product, where `packs_for_cpu` says so."""
        self.packed = fbgemm_products.pack(self.weight, self.weight_scale)
        self.weight = _constant(self.weight[:0].clone())

    def numbers(self, rows: slice) -> torch.Tensor:
        return self.weight[rows].float() * self.weight_scale[rows].float()


class W4Linear(CodedLinear):
    """A linear layer of uint8 `weight` (out, in / 2), two codes a byte and the first one low, with `weight_scale` and
    `weight_zero` (out, in / 32) in the dtype that it computes in: number = (code - 8) * scale + zero.

    After `pack` they are in the order of a device's own product instead, on a CPU without zeros.
    """

    form = "w4"

    def __init__(self, width: int, out: int, bias: bool, dtype: torch.dtype | None = None):
        super().__init__()
        self.weight = _constant(torch.empty(out, width // 2, dtype=torch.uint8))
        self.weight_scale = _constant(torch.empty(out, width // GROUP, dtype=dtype))
        self.weight_zero = _constant(torch.empty(out, width // GROUP, dtype=dtype))
        self.bias = _constant(torch.empty(out, dtype=dtype)) if bias else None

    def pack(self, device: torch.device, kind: str | None = None) -> None:
        """Bring the weights into the order that the product of `device`, or of a `kind`, wants, if it wants another."""
        if packed := pack_int4(self.weight, self.weight_scale, self.weight_zero, device, kind):
            self.weight, self.weight_scale, self.weight_zero = (t if t is None else _constant(t) for t in packed)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in); not after `pack`."""
        return len(self.weight), 2 * self.weight.shape[1]

    @property
    def packed_for_cpu(self) -> bool:
        return self.weight_zero is None

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.packed_for_cpu:
            return packed_int4_linear(x, self.weight, self.weight_scale, bias)
        scale, zero = self.weight_scale.to(x.dtype), self.weight_zero.to(x.dtype)
        return kernels.int4_linear(x, self.weight, scale, zero, bias)

    def numbers(self, rows: slice) -> torch.Tensor:
        return widened_int4(self.weight[rows], self.weight_scale[rows].float(), self.weight_zero[rows].float())


LINEARS = {layer.form: layer for layer in (W8Linear, W4Linear)}


def layer_form(form: str | None, layer: str, width: int) -> str | None:
    """The form of a layer of `width` inputs in a component of a form; None if it stays as it is.

    Two groups or more fill a row, so that a layer of another width has 8 bits where 4 are wanted.
    """
    for own, names in LAYERS.get(form, {}).items():
        if names.fullmatch(layer):
            return "w8" if width % GROUP or width == GROUP else own
    return None


def nbytes(form: str, count: int, dtype: torch.dtype) -> int:
    """Bytes of a layer's `count` numbers in a form, scales included; rows of the release have 512 numbers or more."""
    scales = count // 512 if form == "w8" else 2 * count // GROUP
    return count // {"w8": 1, "w4": 2}[form] + scales * dtype.itemsize


def rounded(weight: torch.Tensor, form: str) -> dict[str, torch.Tensor]:
    """A float matrix (out, in) -> what the layer of a form stores of it, by its names; scales are float32."""
    return {"w8": _rounded_to_8, "w4": _rounded_to_4}[form](weight.float())


def _rounded_to_8(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = _short(weight.abs().amax(dim=1, keepdim=True) / LARGEST)
    codes = (weight / scale).round_().clamp_(-LARGEST, LARGEST)
    return {"weight": codes.to(torch.int8), "weight_scale": scale}


def _rounded_to_4(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    scale = ((high - low) / STEPS).clamp_(min=SMALLEST)
    zero = low + MIDDLE * scale
    for _ in range(FITS):
        scale, zero = _fitted(groups, _codes_of_4(groups, scale, zero), scale, zero)
    scale, zero = _short(scale), zero.bfloat16().float()
    codes = _codes_of_4(groups, scale, zero).add_(MIDDLE).to(torch.uint8)
    first, second = codes.flatten(1).unflatten(1, (-1, 2)).unbind(2)
    return {"weight": first + 16 * second, "weight_scale": scale, "weight_zero": zero}


def _codes_of_4(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """(out, in / 32, 32) numbers -> their codes, less the middle one."""
    codes = (groups - zero[..., None]).div_(scale[..., None])
    return codes.round_().clamp_(-MIDDLE, STEPS - MIDDLE)


def _fitted(groups, codes, scale, zero) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and zero whose line through (code, number) has the smallest squared error, for each group."""
    spread = codes - codes.mean(dim=2, keepdim=True)
    variance = spread.square().sum(dim=2)
    better = (spread * groups).sum(dim=2) / variance.clamp(min=1)
    scale = torch.where((variance > 0) & (better >= SMALLEST), better, scale)
    return scale, groups.mean(dim=2) - codes.mean(dim=2) * scale


def _short(scale: torch.Tensor) -> torch.Tensor:
    """As bfloat16 has it, but never zero: rows of zeros stay zeros, and float16 has the smallest of them too."""
    return scale.clamp(min=SMALLEST).bfloat16().float()


def adopt(module: nn.Module, forms: Mapping[str, str]) -> nn.Module:
    """Replace linear layers (layer's name -> form) by empty ones of these forms, on their device."""
    for name, form in forms.items():
        _replace(module, name, lambda layer, form=form: _empty(layer, form))
    return module


def forms_of(module: nn.Module, form: str | None) -> dict[str, str]:
    """Name of every whole linear layer that has a form of its own in a component of `form` -> that form."""
    wanted = {name: layer_form(form, name, layer.in_features) for name, layer in linear_layers(module)}
    return {name: own for name, own in wanted.items() if own}


def round_layers(module: nn.Module, form: str) -> nn.Module:
    """Round all linear layers that have a form there, in place, one after the other; a fused planner is so no more."""
    for name, own in forms_of(module, form).items():
        _replace(module, name, lambda layer, own=own: _rounded_layer(layer, own))
    for part in module.modules():
        if getattr(part, "fused", None) is not None:
            part.fused = None
    return module


def pack(module: nn.Module, device: torch.device, kind: str | None = None) -> nn.Module:
    """Bring codes into the order of a device's own product: those of the planner, on an NPU of the decoder too."""
    for layer in module.modules():
        if isinstance(layer, W4Linear):
            layer.pack(device, kind)
    if (kind or device.type) == "cpu":
        _pack_for_cpu(filter(packs_for_cpu, module.modules()))
    return module


def _pack_for_cpu(layers: Iterable[W8Linear]) -> None:
    """One after the other on every thread, so that few lie in both orders."""
    with warnings.catch_warnings(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)  # deprecated with its whole class
        list(pool.map(W8Linear.pack, layers))  # raises what a thread raised


def warn_if_slow(planner: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Say why planning takes longer with a planner's codes than with whole weights, if it does. After `pack`."""
    coded = [layer for layer in planner.modules() if isinstance(layer, CodedLinear)]
    for form in sorted({layer.form for layer in coded if not layer.packed_for_cpu}):
        if reason := slow_reason(form, device, dtype):
            logger.warning("the planner is slower than with whole weights: %s", reason)


def packs_for_cpu(layer: nn.Module) -> bool:
    """Whether a layer's codes have 8 bits and can be brought into the order of a CPU's own product."""
    ready = isinstance(layer, W8Linear) and not layer.packed_for_cpu and layer.weight.device.type == "cpu"
    return ready and fbgemm_products.available()


def joined(layers: Sequence[W8Linear]) -> W8Linear:
    """One layer in place of several that have the same input, no LoRA, and biases all or none of them."""
    with torch.device("meta"):
        one = W8Linear(layers[0].weight.shape[1], sum(len(layer.weight) for layer in layers), bias=False)
    for name in ("weight", "weight_scale", "bias"):
        parts = [getattr(layer, name) for layer in layers]
        if parts[0] is not None:
            setattr(one, name, _constant(torch.cat(parts)))
    return one


def linear_layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear))


def _replace(module: nn.Module, name: str, change) -> None:
    home, _, own = name.rpartition(".")
    parent = module.get_submodule(home)
    parent._modules[own] = change(parent.get_submodule(own))


def _empty(layer: nn.Linear, form: str) -> nn.Module:
    with torch.device(layer.weight.device):
        return LINEARS[form](layer.in_features, layer.out_features, layer.bias is not None, layer.weight.dtype)


def _rounded_layer(layer: nn.Linear, form: str) -> nn.Module:
    with torch.device("meta"):
        small = LINEARS[form](layer.in_features, layer.out_features, layer.bias is not None)
    for name, tensor in rounded(layer.weight.detach(), form).items():
        setattr(small, name, _constant(tensor.to(layer.weight.dtype) if tensor.is_floating_point() else tensor))
    small.bias = layer.bias
    return small


def _constant(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
