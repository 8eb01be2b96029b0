"""What training reads of each image instead of its pixels: plan tokens, latents, embeddings, kept on disk.

A file of the cache is named after everything that it was made from: the image's bytes, its caption and size, the
checkpoint's files and the dtype. So whatever changes is made again, and nothing that changed is ever read.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ...pipeline import images
from ...pipeline.denoising.conditioning import glyph_rows
from ...pipeline.errors import InputError
from ...pipeline.files import replacing
from ...pipeline.geometry import TOKEN, preview_grid, token_grid
from ...pipeline.glm_image import GlmImage
from ...pipeline.loading.checkpoint import GLYPH, PLANNER, VAE, Checkpoint
from ...pipeline.plan import upsample_tokens
from ...pipeline.planning.image_plan import fitted, plan_of_images
from ...pipeline.progress import Progress
from .pictures import Picture
from .settings import LoraSettings

VERSION = 1  # of what the files hold
READ = {"planner": (PLANNER,), "decoder": (PLANNER, GLYPH, VAE)}  # components that make them


@dataclass(frozen=True)
class Item:
    """One image ready for training: its caption, its grid of 32 px tokens, and the file with its tensors.

    For the planner "preview" (ph*pw,) and "full" (h*w,) tokens; for the decoder "latents" (16, 4h, 4w), "prior"
    (4*h*w,) tokens and "glyphs" (L, C), the embeddings of the texts that the caption quotes.
    """

    caption: str
    grid: tuple[int, int]
    file: Path

    def tensors(self) -> dict[str, torch.Tensor]:
        """Read from disk."""
        return load_file(self.file)


def prepare(
    model: GlmImage, pictures: Sequence[Picture], settings: LoraSettings, progress: Progress | None = None
) -> list[Item]:
    """The items of `pictures`, in order; makes what the cache does not hold, and frees what made it.

    `progress(done, total, stage="prepare")` counts images, and may raise to interrupt: what is made stays.
    """
    about = _fingerprint(model, settings)
    items = [
        Item(p.caption, token_grid(*p.size), settings.out / "cache" / f"{_key(p, about)}.safetensors") for p in pictures
    ]
    makers = {"planner": (_plan_tokens,), "decoder": (_prior_tokens, _latents, _glyphs)}[settings.component]
    missing = [pair for pair in zip(pictures, items) if not _is_whole(pair[1].file)]
    done, total = 0, len(missing) * len(makers)
    made: dict[Path, dict[str, torch.Tensor]] = {item.file: {} for _, item in missing}
    for maker in makers:  # component by component, so that each is loaded once and none beside another
        for picture, item in missing:
            made[item.file] |= maker(model, picture)
            done += 1
            if maker is makers[-1]:
                with replacing(item.file) as temporary:
                    save_file({k: t.contiguous() for k, t in made.pop(item.file, {}).items()}, temporary)
            if progress:
                progress(done, total, stage="prepare")
        if missing and settings.component == "decoder":
            model.release()
    return items


def digest(items: Sequence[Item]) -> str:
    """Tells sets of images and captions apart."""
    return hashlib.sha256("".join(item.file.stem for item in items).encode()).hexdigest()


def _is_whole(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        load_file(file)
    except SafetensorError:
        return False
    return True


def _fingerprint(model: GlmImage, settings: LoraSettings) -> dict:
    """What besides the image decides what is kept: the files of the checkpoint, and the dtype."""
    return {
        "version": VERSION,
        "component": settings.component,
        "files": _files(model.checkpoint, READ[settings.component]),
        "dtypes": {name: str(model.placement.dtypes[name]) for name in READ[settings.component]},
    }


def _files(checkpoint: Checkpoint, names: Sequence[str]) -> list:
    """Name, size and time of every file of some components."""
    found = []
    for name in (*names, "processor"):
        for path in sorted(checkpoint.component(name).iterdir()):
            about = path.stat()
            found.append((f"{name}/{path.name}", about.st_size, about.st_mtime_ns))
    return found


def _key(picture: Picture, about: dict) -> str:
    image = hashlib.sha256(picture.path.read_bytes()).hexdigest()
    text = json.dumps({**about, "image": image, "caption": picture.caption, "size": picture.size}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _image(picture: Picture) -> Image.Image:
    image = fitted(images.read(picture.path), picture.size[0] * picture.size[1])
    if (image.height, image.width) != picture.size:  # the file changed while it was prepared
        raise InputError(f"image {picture.path} changed while it was read; start again")
    return image


def _tokens(model: GlmImage, image: Image.Image) -> torch.Tensor:
    """(h*w,) plan tokens of an image, on the CPU."""
    with model.components.on_device(PLANNER) as device:
        dtype = model.placement.dtypes[PLANNER]
        return plan_of_images(model.planner, [image], "", model.settings.processor, device, dtype).prior_token_ids_d32[
            0
        ]


def _plan_tokens(model: GlmImage, picture: Picture) -> dict[str, torch.Tensor]:
    """The plan that the planner learns: tokens of the image, and of the image as small as the preview grid.

    Where the preview grid is the larger one, for images of less than about 512 px, an enlarged image would show the
    tokenizer nothing but blur: the preview repeats the image's own tokens then.
    """
    image, grid = _image(picture), token_grid(*picture.size)
    full, (h, w) = _tokens(model, image), preview_grid(*grid)
    if h * w > grid[0] * grid[1]:
        rows, columns = torch.arange(h) * grid[0] // h, torch.arange(w) * grid[1] // w
        return {"full": full, "preview": full.view(grid)[rows][:, columns].flatten()}
    small = image.resize((w * TOKEN, h * TOKEN), Image.Resampling.LANCZOS)
    return {"full": full, "preview": _tokens(model, small)}


def _prior_tokens(model: GlmImage, picture: Picture) -> dict[str, torch.Tensor]:
    return {"prior": upsample_tokens(_tokens(model, _image(picture)), token_grid(*picture.size))}


def _latents(model: GlmImage, picture: Picture) -> dict[str, torch.Tensor]:
    pixels = torch.frombuffer(bytearray(_image(picture).tobytes()), dtype=torch.uint8)
    return {"latents": model.encode(pixels.view(1, *picture.size, 3).float() / 255)[0].float().cpu()}


def _glyphs(model: GlmImage, picture: Picture) -> dict[str, torch.Tensor]:
    return {"glyphs": embed_texts(model, glyph_rows([picture.caption], None, "reference")[0])}


def embed_texts(model: GlmImage, texts: list[str]) -> torch.Tensor:
    """Texts of one image -> (L, C) embeddings on the CPU, read as the reference reads a prompt's."""
    with model.components.on_device(GLYPH):
        return model.glyph_encoder.embed(texts, named=True)[0].float().cpu()
