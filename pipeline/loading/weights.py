"""Weight files -> modules on their device.

Headers are compared with the module's names and shapes before anything is read; `load_module` builds on the meta device
and brings shard after shard to its place. Only safetensors is read: a pickle can run code.
"""

import contextlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..errors import CheckpointError
from ..models import weight_forms
from ..models.config import LAYERS, read_json
from ..models.on_meta import on_meta
from ..text import shown
from .formats import layout_of
from .stored import Entry, Layout, damaged, open_shard

WEIGHT_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
STORED = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
COMPONENT_KEYS = {  # a component -> how names of tensors begin that only it has
    "planner": "model.language_model.",
    "decoder": "transformer_blocks.",
    "glyph encoder": "encoder.block.",
    "VAE": "decoder.up_blocks.",
}
MAX_HEADER = 100 << 20  # bytes; what the format allows
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Weights:
    """The safetensors shards of one component folder; reads headers only until `tensors` is iterated.

    `single_files.py` has the same of one file.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def shards(self) -> list[Path]:
        for name in WEIGHT_NAMES:
            index = self.folder / f"{name}.index.json"
            if index.exists():
                return self._indexed(index)
            if (self.folder / name).exists():
                return [self.folder / name]
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder} is missing; is the download complete?")
        pickles = sorted(p.name for p in self.folder.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise CheckpointError(
                f"{self.folder / pickles[0]} is a pickle, which can run code when read; only .safetensors is loaded"
            )
        raise CheckpointError(f"{self.folder} holds no {' or '.join(WEIGHT_NAMES)}; is the download complete?")

    def _indexed(self, index: Path) -> list[Path]:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: key 'weight_map' is missing, or lists nothing")
        for name in weight_map.values():
            if not isinstance(name, str) or not _is_file_name(name):
                raise CheckpointError(f"{index}: {shown(name)} is no name of a file in this folder")
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{self.folder}: {len(missing)} of {len(names)} shards missing, first {missing[0]}; "
                "is the download complete?"
            )
        return [self.folder / name for name in names]

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """What the files hold under which key, after checking that every shard is whole."""
        found = {}
        for shard in self.shards:
            for key, entry in self.held(shard).items():
                name = self.name(key)
                if name in found and found[name].shard == shard:
                    raise CheckpointError(f"{shard} holds {name} twice, with a prefix and without; give another file")
                found[name] = entry
        return found

    def held(self, shard: Path) -> dict[str, Entry]:
        """What a file holds, by its own keys."""
        return {key: Entry(shard, key, *about) for key, about in read_header(shard).items()}

    def open(self, shard: Path) -> contextlib.AbstractContextManager:
        """Something whose `get_tensor(key)` reads a tensor by the file's key; a head that lies is an error here."""
        return open_shard(shard)

    def name(self, key: str) -> str:
        """The model's name of a file's key."""
        return key

    @cached_property
    def layout(self) -> Layout:
        """The entries as the model has them; raises for files in a format that is not read."""
        config = self.folder / "config.json"
        settings = read_json(config).get("quantization_config") if config.is_file() else None
        noted = {self.name(layer): how for path in self.shards for layer, how in _noted_layers(path).items()}
        return layout_of(self.folder, self.entries, noted, settings)

    @property
    def headers(self) -> dict[str, tuple[Path, tuple[int, ...], str, int]]:
        """key -> (shard, shape, stored dtype's name, bytes) of every tensor."""
        return {key: (t.entry.shard, t.shape, t.dtype, t.nbytes) for key, t in self.layout.tensors.items()}

    @property
    def forms(self) -> dict[str, str]:
        """Name of a linear layer -> "w8" or "w4", for those whose weights lie here in 8 or 4 bits."""
        return self.layout.forms

    @property
    def form(self) -> str | None:
        """The form of the component: the smallest among its layers'."""
        return min(self.forms.values(), default=None)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.layout.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most bytes of these files have, codes and scales of 8 or 4 bits aside."""
        sizes: dict[str, int] = {}
        for key, tensor in self.layout.tensors.items():
            if key.rpartition(".")[0] not in self.forms:
                sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
        if not sizes:
            raise CheckpointError(f"{self.folder} holds no tensors; is the download complete?")
        name = max(sizes, key=sizes.get)
        if name not in STORED:
            raise CheckpointError(f"{self.folder} stores {name} weights; convert them to one of {', '.join(STORED)}")
        return STORED[name]

    def maps(self, key: str) -> bool:
        """Whether a tensor is the file's own numbers, and not made of others."""
        tensor = self.layout.tensors[key]
        return tensor.widen is None and tensor.dtype == tensor.entry.dtype

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor in file order, mapped from disk, one shard open at a time."""
        for shard in self.shards:
            try:
                with self.open(shard) as file:
                    for key, tensor in self.layout.tensors.items():
                        if tensor.entry.shard == shard:
                            yield key, tensor.read(file)
            except SafetensorError as error:
                raise damaged(shard, error) from None


def _is_file_name(name: str) -> bool:
    """Whether a name stays in its folder and any file system can have it."""
    return Path(name).name == name and len(name.encode(errors="replace")) <= 255 and not set(name) & set("\\\0")


def read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str, int]]:
    """key -> (shape, dtype name, bytes) of a safetensors file; a file shorter or longer than it claims is refused."""
    return _read_header(path)[0]


def _noted_layers(path: Path) -> dict[str, dict]:
    """Layers whose format ComfyUI noted in a file's metadata, where newer files have a key for each layer."""
    try:
        layers = json.loads(_read_header(path)[1].get("_quantization_metadata", "{}"))["layers"]
        return {name: how for name, how in layers.items() if isinstance(how, dict)}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _read_header(path: Path) -> tuple[dict[str, tuple[tuple[int, ...], str, int]], dict]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            if length > size - 8:
                raise CheckpointError(f"{path} is not a whole safetensors file ({size} bytes); download it again")
            if length > MAX_HEADER:
                raise CheckpointError(f"{path} has a header of {length:,} bytes; no file of weights has that much")
            entries = json.loads(file.read(length))
            metadata = entries.pop("__metadata__", None) or {}
            found = {key: _entry(**entry) for key, entry in entries.items()}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} is not a safetensors file, or damaged; only .safetensors is loaded") from None
    end = 8 + length + max((stop for *_, stop in found.values()), default=0)
    if size != end:
        raise CheckpointError(f"{path} has {size} bytes, its header asks for {end}; download it again")
    return {key: (shape, dtype, stop - start) for key, (shape, dtype, start, stop) in found.items()}, metadata


def _entry(dtype: str, shape: list[int], data_offsets: list[int]) -> tuple[tuple[int, ...], str, int, int]:
    """One tensor of a header, checked; the library that reads it later compares shapes with bytes."""
    start, stop = data_offsets
    for number in (start, stop, *shape):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**63:
            raise ValueError
    if not isinstance(dtype, str) or stop < start:
        raise ValueError
    return tuple(shape), dtype, start, stop


@contextlib.contextmanager
def settings_of(weights: Weights) -> Iterator[None]:
    """Around building a module: settings that describe no model are an error that names their folder."""
    try:
        yield
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{weights.folder}: config.json describes no model that can be built: {error}; is the download complete?"
        ) from None


def build_empty(build: Callable[[], torch.nn.Module], weights: Weights) -> torch.nn.Module:
    """`build()` on the meta device, from the settings beside these weights."""
    with settings_of(weights), on_meta():
        return build()


def matching(build: Callable[[], torch.nn.Module], config, weights: Weights) -> torch.nn.Module:
    """`build()` on the meta device, which these weights fit; raises `CheckpointError` if they do not."""
    check_layers(config, weights)
    module = weight_forms.adopt(build_empty(build, weights), weights.forms)
    compare(module, weights)
    return module


def load_module(
    build: Callable[..., torch.nn.Module],
    config,
    source: Path | Weights,
    device: torch.device | str,
    dtype: torch.dtype,
    operations=torch.nn,
    progress: Callable[[int, int], None] | None = None,
    form: str | None = None,
    on_host: tuple[str, ...] = (),
) -> torch.nn.Module:
    """`build(config, operations=, dtype=)` on the meta device, filled strictly from a folder or file, in eval mode.

    Names and shapes are compared with the shards' headers before the first byte of weights is read. Each tensor
    goes to `device` and `dtype` on its own, so the host never holds more than one shard's mapping. `form` rounds whole
    weights to 8 or 4 bits on the way ("w8", "w4"); layers that lie in such a form on disk are taken as they are. Keys
    that begin with one of `on_host` stay in host memory.
    """
    weights = source if isinstance(source, Weights) else Weights(source)
    module = matching(lambda: build(config, operations=operations, dtype=dtype), config, weights)
    rounded = weight_forms.forms_of(module, form)
    weight_forms.adopt(module, rounded)
    done, total, state, finite = 0, weights.nbytes, {}, {}
    for key, tensor in weights.tensors():
        for name, part in parts_of(key, tensor, rounded).items():
            where = "cpu" if on_host and name.startswith(on_host) else device
            state[name] = part.to(device=where, dtype=dtype) if part.is_floating_point() else part.to(where)
            finite[name] = finite_flag(state[name])
        done += tensor.nbytes
        if progress:
            progress(done, total)
    _raise_if_not_finite(finite, weights, dtype)
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def parts_of(key: str, tensor: torch.Tensor, rounded: dict[str, str]) -> dict[str, torch.Tensor]:
    """A tensor of a file as the module has it: itself, or what a layer that is rounded keeps of its weight.

    Rounding happens in host memory, so that every device gets the codes that `glm-image quantize` writes.
    """
    layer, _, name = key.rpartition(".")
    if name != "weight" or layer not in rounded:
        return {key: tensor}
    return {f"{layer}.{n}": t for n, t in weight_forms.rounded(tensor, rounded[layer]).items()}


def finite_flag(tensor: torch.Tensor) -> torch.Tensor | None:
    """A 0-d flag on the tensor's device (read once, at the end); None for types that need no check."""
    if not tensor.is_floating_point() or tensor.element_size() < 2 or not tensor.numel():
        return None
    if tensor.device.type == "cpu":
        low, high = tensor.aminmax()  # in one pass, four times as fast as two; not every NPU has it
    else:
        low, high = tensor.amin(), tensor.amax()
    return torch.isfinite(low) & torch.isfinite(high)


def not_finite(flags: dict[str, torch.Tensor | None]) -> list[str]:
    """The names of `finite_flag`s that are false, each device asked once."""
    bad, devices = [], {flag.device for flag in flags.values() if flag is not None}
    for device in devices:
        here = {key: flag for key, flag in flags.items() if flag is not None and flag.device == device}
        bad += [key for key, good in zip(here, torch.stack(list(here.values())).tolist()) if not good]
    return bad


def _raise_if_not_finite(flags: dict[str, torch.Tensor | None], weights: Weights, dtype: torch.dtype) -> None:
    bad = not_finite(flags)
    if bad:
        raise CheckpointError(
            f"{weights.headers[bad[0]][0]}: {bad[0]} holds NaN or infinite numbers as {dtype}"
            f" ({len(bad)} tensors do); the file is damaged, or the dtype too small"
        )


def check_layers(config, weights: Weights) -> None:
    """Refuse settings of more layers than the files have tensors, before minutes go by to build them."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            check_layers(value, weights)
        elif field.name in LAYERS and value > len(weights.headers):
            held = f"the files hold {len(weights.headers)} tensors"
            raise CheckpointError(f"{weights.folder}: config.json asks for {field.name} {value}, {held}")


def component_of(keys: Iterable[str]) -> str | None:
    """Which component has tensors of these names, for people."""
    return next((name for name, start in COMPONENT_KEYS.items() if any(key.startswith(start) for key in keys)), None)


def compare(module: torch.nn.Module, weights: Weights) -> None:
    """Raise `CheckpointError` naming file and key when a tensor is missing, unknown or of another shape.

    A module's `aliases` are other names under which a file may hold a tensor.
    """
    aliases = getattr(module, "aliases", {})
    headers = {aliases.get(key, key): entry for key, entry in weights.headers.items()}
    state = module.state_dict()
    wanted = {key: tuple(value.shape) for key, value in state.items()}
    held, asked = component_of(headers), component_of(wanted)
    if held and asked and held != asked:
        raise CheckpointError(f"{weights.folder} holds the weights of a {held}, and those of a {asked} are wanted")
    missing = [key for key in wanted if key not in headers]
    if missing:
        raise CheckpointError(
            f"{weights.folder}: {len(missing)} keys missing, first {missing[0]}; is the download complete?"
        )
    unknown = [key for key in headers if key not in wanted]
    if unknown:
        shard = headers[unknown[0]][0]
        raise CheckpointError(
            f"{shard}: {len(unknown)} keys this model does not have, first {unknown[0]}; is it GLM-Image?"
        )
    for key, shape in wanted.items():
        shard, found, dtype, _ = headers[key]
        if found != shape:
            raise CheckpointError(f"{shard}: {key} is {found}, config.json asks for {shape}")
        if not _may_hold(dtype, state[key].dtype):
            raise CheckpointError(
                f"{shard}: {key} holds {dtype} numbers of no format that is read; convert the checkpoint's own weights "
                "by 'glm-image quantize'"
            )


def _may_hold(stored: str, dtype: torch.dtype) -> bool:
    """Whether numbers of a file may go into a tensor of a dtype: floats into floats, codes into codes of their size."""
    if dtype.is_floating_point:
        return stored in STORED
    return stored == {torch.int8: "I8", torch.uint8: "U8"}.get(dtype)
