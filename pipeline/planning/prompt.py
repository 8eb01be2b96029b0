"""Prompt -> token ids and positions for the planner.

Follows transformers 5.23 `processing_glm_image.py`.
Shapes: L prompt tokens, h w full grid, ph pw preview grid, p next free position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ..errors import CheckpointError, InputError
from ..models.config import VisionLanguageConfig, read_json
from ..text import SURROGATE, check_prompt, utf8
from .template import compile_template, render_bounded

Grid = tuple[int, int]
CONTROL_TOKENS = ("image_token", "grid_bos_token", "grid_eos_token", "bos_token", "eos_token")


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt: `ids` (L,) int64 with the image token wherever a reference's token goes, `positions` (3, L)."""

    ids: torch.Tensor
    positions: torch.Tensor
    next_position: int


class PromptEncoder:
    """The checkpoint's `processor/` without its image half: chat template, tokenizer and the names of control tokens.

    `control` holds the spelling of each of `CONTROL_TOKENS`; "bos_token" starts an image.
    """

    def __init__(self, folder: Path, config: VisionLanguageConfig):
        self.config = config
        self.tokenizer = _read_tokenizer(folder / "tokenizer.json")
        path = folder / "tokenizer_config.json"
        settings = read_json(path)
        self.names = _token_names(settings)
        missing = [name for name in CONTROL_TOKENS if name not in self.names]
        if missing:
            raise CheckpointError(f"{path}: key {', '.join(map(repr, missing))} is missing")
        self.control = {name: self.names[name] for name in CONTROL_TOKENS}
        self.template_path, source = _find_template(folder, settings)
        self.template = compile_template(source, self.template_path)

    def render(self, prompt: str, references: int = 0) -> str:
        """The chat template around a prompt and its reference images, one image token each."""
        content = [{"type": "image"}] * references + [{"type": "text", "text": prompt}]
        try:
            text = render_bounded(
                self.template,
                messages=[{"role": "user", "content": content}],
                tools=None,
                documents=None,
                add_generation_prompt=False,
                **self.names,
            )
        except Exception as error:  # a template computes, and may fail in every way a program can
            raise CheckpointError(f"{self.template_path} cannot be rendered: {error or type(error).__name__}") from None
        return utf8(text).decode()  # a template can make text that no tokenizer takes

    def encode(
        self, prompt: str, grid: Grid, preview: Grid | None = None, references: Sequence[Grid] = ()
    ) -> EncodedPrompt:
        """Prompt, target grid and reference grids -> ids up to the image start token, after which planning begins."""
        self.check(prompt)
        text = self.render(prompt, len(references))
        special = not text.startswith(self.control["bos_token"])
        text += self._grid_tag(grid) + (self._grid_tag(preview) if preview else "") + self.control["bos_token"]
        ids = self.tokenizer.encode(text, add_special_tokens=special).ids
        if ids.count(self.config.image_token_id) != len(references):
            raise CheckpointError(
                f"{self.template_path} renders {ids.count(self.config.image_token_id)} image tokens for "
                f"{len(references)} reference images; is processor/ of this checkpoint complete?"
            )
        length = len(ids) + sum(h * w - 1 for h, w in references)
        check_length(length, (preview, grid) if preview else (grid,), self.config)
        return _place(ids, references, self.config.image_token_id)

    def check(self, prompt: str) -> None:
        """Refuse what `text.check_prompt` does, except no text, and control tokens of the model."""
        check_prompt(prompt, empty=True)
        found = [name for name in self.control.values() if name in prompt]
        if found:
            raise InputError(f"the prompt contains {found[0]}, a control token of the model; remove it")

    def _grid_tag(self, grid: Grid) -> str:
        return f"{self.control['grid_bos_token']}{grid[0]} {grid[1]}{self.control['grid_eos_token']}"


@dataclass(frozen=True)
class PromptBatch:
    """Prompts padded on the left to one length, ready for `generate.prefill`.

    `ids` (B, L) int64; `mask` (B, L) bool, False on padding; `positions` (3, B, L); `decode_positions` (3, B, N) of
    the N tokens to plan, grid after grid; `grids` in the order they are planned: preview first, the full grid last.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    decode_positions: torch.Tensor
    grids: tuple[Grid, ...]

    @property
    def padded(self) -> bool:
        return not bool(self.mask.all())


def collate(
    prompts: Sequence[EncodedPrompt],
    grid: Grid,
    preview: Grid | None,
    config: VisionLanguageConfig,
    reference_ids: Sequence[torch.Tensor] = (),
) -> PromptBatch:
    """Encoded prompts of one target -> a batch on the CPU; `reference_ids` (h*w,) take the image tokens' places."""
    grids = (preview, grid) if preview else (grid,)
    length = max(len(prompt.ids) for prompt in prompts)
    check_length(length, grids, config)
    ids = torch.full((len(prompts), length), config.text_config.pad_token_id)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    positions = torch.zeros((3, *ids.shape), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        start = length - len(prompt.ids)
        ids[row, start:] = _fill_references(prompt.ids, reference_ids, config.image_token_id)
        mask[row, start:] = True
        positions[:, row, start:] = prompt.positions
    decode = torch.stack([_decode_positions(prompt.next_position, grids) for prompt in prompts], dim=1)
    return PromptBatch(ids, mask, positions, decode, grids)


def check_length(length: int, grids: Sequence[Grid], config: VisionLanguageConfig) -> None:
    """Refuse a prompt of `length` tokens that the planner has no room for, besides the grids."""
    planned, limit = sum(h * w for h, w in grids), config.text_config.max_position_embeddings
    if length + planned > limit:
        raise InputError(
            f"the prompt has {length} tokens and the image {planned}, the planner takes {limit} in all; "
            "shorten the prompt, use fewer or smaller reference images, or a smaller size"
        )


def _place(ids: list[int], references: Sequence[Grid], image_token_id: int) -> EncodedPrompt:
    """Expand each image token to its grid and count positions: text on all three axes, a grid at (p, p+row, p+col)."""
    out, positions, p, remaining = [], [], 0, iter(references)
    for token in ids:
        if token == image_token_id:
            h, w = next(remaining)
            out.append(torch.full((h * w,), image_token_id))
            positions.append(grid_positions(p, (h, w)))
            p += max(h, w)
        else:
            out.append(torch.tensor([token]))
            positions.append(torch.full((3, 1), p))
            p += 1
    return EncodedPrompt(torch.cat(out), torch.cat(positions, dim=1), p)


def grid_positions(start: int, grid: Grid) -> torch.Tensor:
    """(3, h*w) positions of a grid's tokens in time, row and column."""
    h, w = grid
    rows, columns = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
    return start + torch.stack((torch.zeros_like(rows), rows, columns))


def _decode_positions(start: int, grids: Sequence[Grid]) -> torch.Tensor:
    parts = []
    for grid in grids:
        parts.append(grid_positions(start, grid))
        start += max(grid)
    return torch.cat(parts, dim=1)


def _fill_references(ids: torch.Tensor, reference_ids: Sequence[torch.Tensor], image_token_id: int) -> torch.Tensor:
    if not reference_ids:
        return ids
    return ids.masked_scatter(ids == image_token_id, torch.cat(list(reference_ids)))


def _read_tokenizer(path: Path) -> Tokenizer:
    if "model" not in read_json(path):  # the library's own errors do not name the file
        raise CheckpointError(f"{path}: key 'model' is missing; is this a tokenizer?")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise CheckpointError(f"{path} is no tokenizer: {error}") from None


def _token_names(settings: dict) -> dict[str, str]:
    """Named special tokens of `tokenizer_config.json`, at its top level or in the dictionaries some releases use."""
    found = {}
    for key in ("model_specific_special_tokens", "extra_special_tokens"):
        if isinstance(settings.get(key), dict):
            found |= settings[key]
    found |= {key: value for key, value in settings.items() if key.endswith("_token")}
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in found.items()}
    return {key: value for key, value in texts.items() if isinstance(value, str) and not SURROGATE.search(value)}


def _find_template(folder: Path, settings: dict) -> tuple[Path, str]:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path, _template_text(path)
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).exists() and "chat_template" in read_json(folder / name):
            return folder / name, read_json(folder / name)["chat_template"]
    if "chat_template" in settings:
        return folder / "tokenizer_config.json", settings["chat_template"]
    raise CheckpointError(f"{path} is missing; is the download complete?")


def _template_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
