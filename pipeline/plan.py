"""A plan: the image planned as VQ tokens, ready to decode, save, share and edit.

Shapes: B plans, h w full grid (a token is 32 px), ph pw preview grid.
"""

import json
import math
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .errors import InputError
from .files import replacing
from .geometry import MAX_SIDE, TOKEN, check_size
from .text import shown, utf8

FORMAT = "glm-image-plan"
VERSION = 1
MAX_FILE = 400 << 20  # bytes; thirty of the largest references, more than any planner takes
MAX_HEADER = 32 << 20  # bytes of names and prompts in it
MAX_PLAN_ROWS = 64  # rows of a pass of the planner
MAX_ROWS = 1024
MAX_GRID = MAX_SIDE // TOKEN  # tokens on a side
MAX_LORAS = 64  # of the planner that made a plan
SEEDS = range(-(2**63), 2**64)  # what a torch.Generator takes


@dataclass(frozen=True)
class Reference:
    """A reference image as planner and decoder see it: tokens and pixels of one grid, so that sizes agree.

    `pixels` is uint8 (32h, 32w, 3) on the CPU, `prior_token_ids_d32` int64 (h*w,) on the CPU.
    """

    pixels: torch.Tensor
    prior_token_ids_d32: torch.Tensor
    grid: tuple[int, int]

    def __post_init__(self):
        _check_grid("a reference's grid", self.grid)
        h, w = self.grid
        _check_tensor("a reference's pixels", self.pixels, torch.uint8, (h * TOKEN, w * TOKEN, 3))
        _check_tensor("a reference's tokens", self.prior_token_ids_d32, torch.int64, (h * w,))


@dataclass(frozen=True)
class UsedLora:
    """A LoRA of the planner that made a plan: the file's name, the SHA-256 of what it holds, and its strength."""

    name: str
    sha256: str
    strength: float

    def __post_init__(self):
        good = isinstance(self.name, str) and isinstance(self.sha256, str) and re.fullmatch("[0-9a-f]{64}", self.sha256)
        good = good and isinstance(self.strength, (int, float)) and math.isfinite(self.strength)
        if not good:
            raise InputError(
                f"a LoRA of the planner is {shown(tuple(vars(self).values()))}; a file, a hash, a strength"
            )
        utf8(self.name)


@dataclass(frozen=True)
class Plan:
    """What the planner hands to the decoder, one row for every image of the batch.

    `prior_token_ids_d32`: int64 (B, h*w) on the CPU, each in 0..codebook_size-1.
    `preview_token_ids`: int64 (B, ph*pw), or None for plans with references, which have no preview.
    `seed`: the plan seed of the first row; row k was sampled with seed + k.
    `plan_rows`: tokens a pass of the planner that would plan the same again (1 in float32, where any number does).
    `planner_loras`: those that the planner had.
    """

    prior_token_ids_d32: torch.Tensor
    grid: tuple[int, int]
    codebook_size: int
    prompts: list[str]
    seed: int
    preview_token_ids: torch.Tensor | None = None
    preview_grid: tuple[int, int] | None = None
    references: list[Reference] = field(default_factory=list)
    plan_rows: int = 1  # also of older files
    planner_loras: tuple[UsedLora, ...] = ()

    def __post_init__(self):
        _check_grid("grid", self.grid)
        check_size(self.height, self.width)
        _check_prompts(self.prompts)
        _check_whole("codebook_size", self.codebook_size, range(1, 2**31))
        _check_whole("seed", self.seed, range(SEEDS.start, SEEDS.stop - len(self.prompts) + 1))
        _check_whole("plan_rows", self.plan_rows, range(1, MAX_PLAN_ROWS + 1))
        _check_loras(self.planner_loras)
        self._check_tokens("prior_token_ids_d32", self.prior_token_ids_d32, self.grid)
        if self.preview_token_ids is not None:
            _check_grid("preview_grid", self.preview_grid)
            self._check_tokens("preview_token_ids", self.preview_token_ids, self.preview_grid)
        for i, reference in enumerate(self.references):
            self._check_range(f"reference {i + 1}", reference.prior_token_ids_d32)

    def _check_tokens(self, name: str, ids: torch.Tensor, grid: tuple[int, int]) -> None:
        _check_tensor(name, ids, torch.int64, (len(self.prompts), grid[0] * grid[1]))
        self._check_range(name, ids)

    def _check_range(self, name: str, ids: torch.Tensor) -> None:
        low, high = int(ids.min()), int(ids.max())
        if not 0 <= low <= high < self.codebook_size:
            raise InputError(f"{name} spans {low}..{high}, the codebook holds 0..{self.codebook_size - 1}")

    def __len__(self) -> int:
        return len(self.prior_token_ids_d32)

    @property
    def height(self) -> int:
        """Pixels."""
        return self.grid[0] * TOKEN

    @property
    def width(self) -> int:
        """Pixels."""
        return self.grid[1] * TOKEN

    @property
    def prior_token_ids(self) -> torch.Tensor:
        """(B, 4*h*w): the full grid repeated twice on both axes, one token for every decoder patch."""
        return upsample_tokens(self.prior_token_ids_d32, self.grid)

    def resized(self, height: int, width: int) -> "Plan":
        """The composition at another size in pixels: each new token is the nearest old one. It has no preview."""
        check_size(height, width)
        h, w = height // TOKEN, width // TOKEN
        rows = ((torch.arange(h) + 0.5) * (self.grid[0] / h)).long()
        columns = ((torch.arange(w) + 0.5) * (self.grid[1] / w)).long()
        ids = self.prior_token_ids_d32.unflatten(1, self.grid)[:, rows][:, :, columns].flatten(1)
        return replace(self, prior_token_ids_d32=ids, grid=(h, w), preview_token_ids=None, preview_grid=None)

    def select(self, rows: slice) -> "Plan":
        """The plans of some rows of the batch, as a plan of its own."""
        preview = None if self.preview_token_ids is None else self.preview_token_ids[rows]
        return Plan(
            self.prior_token_ids_d32[rows],
            self.grid,
            self.codebook_size,
            self.prompts[rows],
            self.seed + range(len(self))[rows].start,
            preview,
            self.preview_grid,
            self.references,
            self.plan_rows,
            self.planner_loras,
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write tokens, references and prompts as safetensors; an old file stays until the new one is whole."""
        tensors = {"prior_token_ids_d32": self.prior_token_ids_d32.contiguous()}
        if self.preview_token_ids is not None:
            tensors["preview_token_ids"] = self.preview_token_ids.contiguous()
        for i, reference in enumerate(self.references):
            tensors[f"references.{i}.pixels"] = reference.pixels.contiguous()
            tensors[f"references.{i}.prior_token_ids_d32"] = reference.prior_token_ids_d32.contiguous()
        about = {
            "grid": self.grid,
            "preview_grid": self.preview_grid,
            "codebook_size": self.codebook_size,
            "prompts": self.prompts,
            "seed": self.seed,
            "plan_rows": self.plan_rows,
            "planner_loras": [vars(lora) for lora in self.planner_loras],
            "references": [reference.grid for reference in self.references],
        }
        metadata = {"format": FORMAT, "version": str(VERSION), "plan": json.dumps(about, ensure_ascii=False)}
        data = save(tensors, metadata=metadata)
        with replacing(path) as temporary:
            temporary.write_bytes(data)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Plan":
        """Read a plan file; anything that is not one, or is damaged, is an `InputError` that says so."""
        path = Path(path)
        try:
            return cls._from_parts(*_read(path))
        except InputError as error:
            raise InputError(f"plan file {path} {error}") from None
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"plan file {path} is damaged: {type(error).__name__} {error}") from None

    @classmethod
    def _from_parts(cls, tensors: dict[str, torch.Tensor], about: dict) -> "Plan":
        references = []
        for i, grid in enumerate(about["references"]):
            pixels, ids = tensors[f"references.{i}.pixels"], tensors[f"references.{i}.prior_token_ids_d32"]
            references.append(Reference(pixels, ids, tuple(grid)))
        return cls(
            tensors["prior_token_ids_d32"],
            tuple(about["grid"]),
            about["codebook_size"],
            about["prompts"],
            about["seed"],
            tensors.get("preview_token_ids"),
            None if about["preview_grid"] is None else tuple(about["preview_grid"]),
            references,
            about.get("plan_rows", 1),
            tuple(UsedLora(**lora) for lora in about.get("planner_loras", ())),
        )


def is_plan(path: Path) -> bool:
    """Whether a file says at its start that it is a plan; nothing else of it is read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MAX_HEADER else {}
        return header.get("__metadata__", {}).get("format") == FORMAT
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def upsample_tokens(ids: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(..., h*w) tokens of 32 px -> (..., 4*h*w) tokens of 16 px, by nearest."""
    ids = ids.unflatten(-1, grid)
    return ids.repeat_interleave(2, -2).repeat_interleave(2, -1).flatten(-2)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors and the JSON of a plan file; sizes are looked at before anything is read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        missing = isinstance(error, FileNotFoundError)
        raise InputError("does not exist" if missing else f"cannot be read: {error}") from None
    if size > MAX_FILE or MAX_HEADER < header < size:
        raise InputError(f"is too large for a plan ({size:,} bytes, of which {header:,} describe it)")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            _check_format(metadata)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a handle, not a dict
    except (SafetensorError, OSError) as error:
        raise InputError(f"is not whole, or not a plan: {error}") from None
    return tensors, json.loads(metadata["plan"])


def _check_format(metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise InputError("is a safetensors file, but not a GLM-Image plan")
    if metadata.get("version") != str(VERSION):
        raise InputError(f"has version {shown(metadata.get('version'))}; this release reads {VERSION}")


def _check_grid(name: str, grid: tuple[int, int]) -> None:
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise InputError(f"{name} is {shown(grid)}, expected two whole numbers")
    for side in grid:
        _check_whole(f"a side of {name}", side, range(1, MAX_GRID + 1))


def _check_whole(name: str, value: int, accepted: range) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value not in accepted:
        raise InputError(
            f"{name} {shown(value)} is not accepted; use a whole number from {accepted.start} to {accepted.stop - 1}"
        )


def _check_prompts(prompts: list[str]) -> None:
    if not isinstance(prompts, (list, tuple)) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError(f"prompts are {shown(prompts)}, expected a list of strings")
    if not 1 <= len(prompts) <= MAX_ROWS:
        raise InputError(f"a plan has 1 to {MAX_ROWS} images, each with its prompt, not {len(prompts)}")
    for prompt in prompts:
        utf8(prompt)


def _check_loras(loras: tuple[UsedLora, ...]) -> None:
    given = isinstance(loras, (list, tuple)) and all(isinstance(lora, UsedLora) for lora in loras)
    if not given or len(loras) > MAX_LORAS:
        raise InputError(f"planner_loras are {shown(loras)}, expected at most {MAX_LORAS} that were used")


def _check_tensor(name: str, values: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = isinstance(values, torch.Tensor)
    if not tensor or values.dtype != dtype or tuple(values.shape) != shape:
        came = f"{values.dtype} {tuple(values.shape)}" if tensor else type(values).__name__
        raise InputError(f"{name} is {came}, expected {dtype} {shape}")
