"""Operators that treat elements one by one."""

import torch
import torch.nn.functional as F

from .table import Table, flag, put, wide

table = Table()
kernel = table.kernel

UNARY = {
    "Abs": torch.abs,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Expm1": torch.expm1,
    "Floor": torch.floor,
    "Gelu": lambda x: F.gelu(x, approximate="tanh"),  # as CANN documents it
    "IsFinite": torch.isfinite,
    "IsInf": torch.isinf,
    "IsNegInf": torch.isneginf,
    "IsPosInf": torch.isposinf,
    "Log": torch.log,
    "Log2": torch.log2,
    "LogicalNot": torch.logical_not,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Rsqrt": torch.rsqrt,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Silu": F.silu,
    "Sin": torch.sin,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
    "Trunc": torch.trunc,
}
BINARY = {
    "BitwiseAndScalar": torch.bitwise_and,
    "BitwiseAndTensor": torch.bitwise_and,
    "BitwiseOrTensor": torch.bitwise_or,
    "Div": torch.true_divide,
    "Divs": torch.true_divide,
    "EqScalar": torch.eq,
    "EqTensor": torch.eq,
    "FloorDivide": torch.floor_divide,
    "FloorDivides": torch.floor_divide,
    "FmodScalar": torch.fmod,
    "GeScalar": torch.ge,
    "GeTensor": torch.ge,
    "GtScalar": torch.gt,
    "GtTensor": torch.gt,
    "LeScalar": torch.le,
    "LeTensor": torch.le,
    "LogicalAnd": torch.logical_and,
    "LogicalOr": torch.logical_or,
    "LogicalXor": torch.logical_xor,
    "LtScalar": torch.lt,
    "LtTensor": torch.lt,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
    "Mul": torch.mul,
    "Muls": torch.mul,
    "NeScalar": torch.ne,
    "NeTensor": torch.ne,
    "PowScalarTensor": torch.pow,
    "PowTensorScalar": torch.pow,
    "PowTensorTensor": torch.pow,
    "RemainderTensorScalar": torch.remainder,
    "RemainderTensorTensor": torch.remainder,
}


def unary(function):
    return lambda x, out, *_: put(out, function(wide(x)))


def unary_in_place(function):
    return lambda x, *_: put(x, function(wide(x)))


def binary(function):
    return lambda x, y, out, *_: put(out, function(wide(x), wide(y)))


def binary_in_place(function):
    return lambda x, y, *_: put(x, function(wide(x), wide(y)))


for _name, _function in UNARY.items():
    kernel(_name)(unary(_function))
    kernel(f"Inplace{_name}")(unary_in_place(_function))
for _name, _function in BINARY.items():
    kernel(_name)(binary(_function))
    kernel(f"Inplace{_name}")(binary_in_place(_function))


@kernel("Add", "Adds", "AddV3")
def add(x, y, alpha, out, *_):
    put(out, wide(x) + alpha * wide(y))


@kernel("InplaceAdd", "InplaceAdds")
def add_in_place(x, y, alpha, *_):
    put(x, wide(x) + alpha * wide(y))


@kernel("Sub", "Subs")
def subtract(x, y, alpha, out, *_):
    put(out, wide(x) - alpha * wide(y))


@kernel("InplaceSub", "InplaceSubs")
def subtract_in_place(x, y, alpha, *_):
    put(x, wide(x) - alpha * wide(y))


@kernel("Rsubs", "Rsub")
def subtract_from(x, y, alpha, out, *_):
    put(out, wide(y) - alpha * wide(x))


@kernel("Addcmul")
def add_product(x, y, z, value, out, *_):
    put(out, wide(x) + value * wide(y) * wide(z))


@kernel("InplaceAddcmul")
def add_product_in_place(x, y, z, value, *_):
    put(x, wide(x) + value * wide(y) * wide(z))


@kernel("InplaceAddcdiv")
def add_quotient_in_place(x, y, z, value, *_):
    put(x, wide(x) + value * wide(y) / wide(z))


@kernel("Lerps")
def lerp(x, end, weight, out, *_):
    put(out, torch.lerp(wide(x), wide(end), weight))


@kernel("DivMod", "DivMods")
def divide_rounded(x, y, mode, out, *_):
    put(out, torch.div(wide(x), wide(y), rounding_mode={0: None, 1: "trunc", 2: "floor"}[mode & 0xFF]))


@kernel("InplaceDivMod", "InplaceDivMods")
def divide_rounded_in_place(x, y, mode, *_):
    put(x, torch.div(wide(x), wide(y), rounding_mode={0: None, 1: "trunc", 2: "floor"}[mode & 0xFF]))


@kernel("GeluV2")
def gelu(x, approximate, out, *_):
    put(out, F.gelu(wide(x), approximate="tanh" if flag(approximate) else "none"))


@kernel("Cast")
def cast(x, dtype, out, *_):
    put(out, x)


@kernel("InplaceCopy")
def copy(x, source, *_):
    x.copy_(source)


@kernel("InplaceZero")
def zero(x, *_):
    x.zero_()


@kernel("InplaceOne")
def one(x, *_):
    x.fill_(1)


@kernel("InplaceFillScalar")
def fill(x, value, *_):
    x.fill_(value)


@kernel("InplaceFillTensor")
def fill_tensor(x, value, *_):
    x.fill_(value.item())


@kernel("SWhere")
def where(condition, x, y, out, *_):
    put(out, torch.where(condition.bool(), x, y))


@kernel("Clamp")
def clamp(x, low, high, out, *_):
    put(out, wide(x).clamp(low, high))


@kernel("ClampMin")
def clamp_min(x, low, out, *_):
    put(out, wide(x).clamp_min(low))


@kernel("ClampMax")
def clamp_max(x, high, out, *_):
    put(out, wide(x).clamp_max(high))


@kernel("InplaceClampMin")
def clamp_min_in_place(x, low, *_):
    put(x, wide(x).clamp_min(low))


@kernel("InplaceClampMax")
def clamp_max_in_place(x, high, *_):
    put(x, wide(x).clamp_max(high))


@kernel("IsInTensorScalar")
def is_in(x, test, unique, invert, out, *_):
    put(out, torch.isin(x, test, invert=flag(invert)))


@kernel("Polar")
def polar(magnitude, angle, out, *_):
    put(out, torch.polar(magnitude, angle))


@kernel("InplaceNormal")
def normal(x, *_):
    x.normal_()


@kernel("InplaceUniform")
def uniform(x, *_):
    x.uniform_()
