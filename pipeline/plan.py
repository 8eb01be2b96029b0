"""A plan: the image planned as VQ tokens, ready to decode, save, share and edit.

Shapes: B plans, h w full grid (a token is 32 px), ph pw preview grid.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import InputError
from .files import replacing
from .geometry import TOKEN

FORMAT = "glm-image-plan"
VERSION = 1


@dataclass(frozen=True)
class Reference:
    """A reference image as planner and decoder see it: tokens and pixels of one grid, so that sizes agree.

    `pixels` is uint8 (32h, 32w, 3) on the CPU, `prior_token_ids_d32` int64 (h*w,) on the CPU.
    """

    pixels: torch.Tensor
    prior_token_ids_d32: torch.Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """What the planner hands to the decoder, one row for every image of the batch.

    `prior_token_ids_d32`: int64 (B, h*w) on the CPU, each in 0..codebook_size-1.
    `preview_token_ids`: int64 (B, ph*pw), or None for plans with references, which have no preview.
    `seed`: the plan seed of the first row; row k was drawn with seed + k.
    """

    prior_token_ids_d32: torch.Tensor
    grid: tuple[int, int]
    codebook_size: int
    prompts: list[str]
    seed: int
    preview_token_ids: torch.Tensor | None = None
    preview_grid: tuple[int, int] | None = None
    references: list[Reference] = field(default_factory=list)

    def __post_init__(self):
        _check_tokens("prior_token_ids_d32", self.prior_token_ids_d32, self.grid, self.codebook_size)
        if self.preview_token_ids is not None:
            _check_tokens("preview_token_ids", self.preview_token_ids, self.preview_grid, self.codebook_size)
        if len(self.prompts) != len(self.prior_token_ids_d32):
            raise InputError(f"a plan of {len(self.prior_token_ids_d32)} images has {len(self.prompts)} prompts")

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
            "references": [reference.grid for reference in self.references],
        }
        metadata = {"format": FORMAT, "version": str(VERSION), "plan": json.dumps(about, ensure_ascii=False)}
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Plan":
        """Read a plan file; anything that is not one, or is damaged, is an `InputError` that says so."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"plan file {path} does not exist")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a handle, not a dict
        except SafetensorError as error:
            raise InputError(f"{path} is not a whole plan file: {error}") from None
        if metadata.get("format") != FORMAT:
            raise InputError(f"{path} is a safetensors file, but not a GLM-Image plan")
        if metadata.get("version") != str(VERSION):
            raise InputError(f"{path} has plan version {metadata.get('version')}; this release reads {VERSION}")
        try:
            return cls._from_parts(tensors, json.loads(metadata["plan"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is a damaged plan file: {error!r}") from None

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
        )


def upsample_tokens(ids: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(..., h*w) tokens of 32 px -> (..., 4*h*w) tokens of 16 px, by nearest."""
    ids = ids.unflatten(-1, grid)
    return ids.repeat_interleave(2, -2).repeat_interleave(2, -1).flatten(-2)


def _check_tokens(name: str, ids: torch.Tensor, grid: tuple[int, int], codebook_size: int) -> None:
    if ids.dtype != torch.int64 or ids.ndim != 2 or ids.shape[1] != grid[0] * grid[1]:
        raise InputError(f"{name} is {ids.dtype} {tuple(ids.shape)}, expected int64 (B, {grid[0]}*{grid[1]})")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < codebook_size:
        raise InputError(f"{name} spans {int(ids.min())}..{int(ids.max())}, the codebook holds 0..{codebook_size - 1}")
