"""Arguments that several commands share, and the model they ask for."""

import argparse
import sys
from pathlib import Path

from PIL import Image

from ..pipeline import images
from ..pipeline.errors import InputError
from ..pipeline.files import check_writable
from ..pipeline.geometry import fitting
from ..pipeline.loading import HUB_ID

WEIGHTS = ("auto", "full", "w8", "w4")
LORAS = {"planner_lora": "vision_language_encoder", "lora": "transformer"}  # options -> components


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=HUB_ID, help=f"folder, hub id, modelscope:ID, or 'small', the bundled one (default {HUB_ID})"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, npu, npu:1 (default: the best present)")
    parser.add_argument("--dtype", help="bf16, fp16 or fp32 (default: the device's best)")
    parser.add_argument(
        "--planner-int8",
        action="store_true",
        default=None,
        help="the same as --planner-weights w8",
    )
    weights = (
        "full: as in the files; w8, w4: rounded to 8 or 4 bits while they are loaded, which changes images a little"
    )
    parser.add_argument(
        "--planner-weights",
        choices=WEIGHTS,
        help=f"{weights}; auto (default): full, or w8 where layers would have to stream",
    )
    parser.add_argument("--decoder-weights", choices=WEIGHTS, help="the same for the decoder")
    parser.add_argument("--planner-device", metavar="DEVICE", help="where the planner runs, if elsewhere")
    parser.add_argument("--decoder-device", metavar="DEVICE", help="where glyph encoder, decoder and VAE run")
    parser.add_argument(
        "--offload",
        default="auto",
        help="none: keep all loaded; phases: planner and decoder take turns; stream: layers wait in host memory; "
        "auto: the first that fits",
    )


def add_weight_files(parser: argparse.ArgumentParser) -> None:
    about = "one .safetensors or .gguf file whose weights replace the checkpoint's own"
    parser.add_argument("--planner-file", type=Path, metavar="FILE", help=f"{about}, for the planner")
    parser.add_argument("--decoder-file", type=Path, metavar="FILE", help="the same for the decoder")


def weight_files_as_text(args: argparse.Namespace) -> dict[str, str]:
    """Those that were given, for notes of what an image was generated with."""
    names = ("planner_file", "decoder_file")
    return {name: str(path) for name in names if (path := getattr(args, name, None)) is not None}


def add_planner_lora(parser: argparse.ArgumentParser) -> None:
    about = "LoRA of the planner as PEFT writes it, a file or its folder; may be repeated (default strength 1)"
    _add_lora_files(parser, "--planner-lora", about)


def add_lora(parser: argparse.ArgumentParser) -> None:
    about = "LoRA of the decoder as diffusers or PEFT writes it, a file or its folder; may be repeated"
    _add_lora_files(parser, "--lora", about)


def _add_lora_files(parser: argparse.ArgumentParser, option: str, about: str) -> None:
    parser.add_argument(option, action="append", type=_lora, metavar="FILE[:STRENGTH]", help=about)


def _lora(text: str) -> tuple[Path, float]:
    """ "style.safetensors:0.8" -> the file and its strength."""
    name, colon, strength = text.rpartition(":")
    try:
        return (Path(name), float(strength)) if colon else (Path(text), 1.0)
    except ValueError:  # a colon of the name itself, as in C:\\style.safetensors
        return Path(text), 1.0


def check_loras(args: argparse.Namespace) -> dict[str, str]:
    """Refuse LoRA files that cannot be the component's, before the checkpoint is looked for or downloaded.

    By option, each file as text: its path, its strength, the start of its hash.
    """
    found = {}
    for option, name in LORAS.items():
        if pairs := getattr(args, option, None):
            from ..pipeline.loading.lora_files import TARGETS, check_lora_file

            hashes = [check_lora_file(path, strength, TARGETS[name])[:12] for path, strength in pairs]
            found[option] = ", ".join(f"{path}:{s:g} {start}" for (path, s), start in zip(pairs, hashes))
    return found


class Unset(int):
    """A default that can be told from the same number given by the user."""


def _aspect(text: str) -> float:
    """ "16:9" -> height over width."""
    width, _, height = text.partition(":")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; give width:height, such as 16:9")
    return int(height) / int(width)


def add_planning(parser: argparse.ArgumentParser, size: int = 1024) -> None:
    size = Unset(size)
    parser.add_argument("--width", type=int, default=size, help=f"pixels, a multiple of 32 (default {size})")
    parser.add_argument("--height", type=int, default=size, help=f"pixels, a multiple of 32 (default {size})")
    parser.add_argument(
        "--aspect", type=_aspect, metavar="W:H", help="a size that the checkpoint knows in this shape, such as 16:9"
    )
    parser.add_argument(
        "--image", action="append", type=Path, default=[], metavar="FILE", help="reference image; may be repeated"
    )
    parser.add_argument("--count", type=int, default=1, help="images, each with a plan of its own (default 1)")
    parser.add_argument("--plan-seed", type=int, help="seed of the plan (default: --seed)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise, and of the plan (default 0)")
    add_planner_lora(parser)
    parser.add_argument("--temperature", type=float, help="of the planner; 0 is greedy (default: the checkpoint's)")
    parser.add_argument("--top-p", type=float, help="of the planner (default: the checkpoint's)")
    parser.add_argument(
        "--plan-rows",
        type=int,
        metavar="N",
        help="tokens that go through the planner together, all but one drafts to be checked; 1 plans one by one "
        "(default: what suits the device)",
    )


def add_denoising(parser: argparse.ArgumentParser, steps: int = 50) -> None:
    parser.add_argument(
        "--fit", action="store_true", help="round a size off the grid of 32 px up, and cut the images back to it"
    )
    add_lora(parser)
    parser.add_argument("--steps", type=int, default=steps, help=f"passes through the decoder (default {steps})")
    parser.add_argument("--cfg", type=float, default=1.5, help="guidance scale; 1 switches it off (default 1.5)")
    parser.add_argument(
        "--text", action="append", metavar="TEXT", help="text to render, instead of the quoted ones; may be repeated"
    )
    parser.add_argument(
        "--glyph-mode",
        default="reference",
        choices=("reference", "prompt_order"),
        help="how quoted texts are found: as the reference does, or reading apostrophes and all quote styles",
    )
    parser.add_argument(
        "--guidance-interval",
        nargs=2,
        type=float,
        metavar=("FROM", "TO"),
        help="compute guidance only between these shares of the steps, such as 0 0.5: faster, another image",
    )
    parser.add_argument(
        "--step-cache",
        type=float,
        metavar="THRESHOLD",
        help="repeat the decoder's later blocks while its first one changes by less, such as 0.1: faster, "
        "another image",
    )
    parser.add_argument(
        "--guidance-batching",
        choices=("auto", "batched", "sequential"),
        help="the two passes of guidance as one batch, one after the other, or (auto) as suits device and memory",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        default=None,  # given or not, as with the others
        help="run the decoder by torch.compile, which needs a compiler: pays for many images of one size",
    )


def approximations(args: argparse.Namespace) -> dict:
    """The options of `denoise` that trade exactness for speed."""
    return {"guidance_interval": args.guidance_interval, "step_cache": args.step_cache}


def denoise_options(args: argparse.Namespace):
    """The `DenoiseOptions` of these arguments, checked."""
    from ..pipeline.denoising.options import DenoiseOptions

    return DenoiseOptions(
        args.steps,
        args.cfg,
        args.seed,
        glyph_texts=args.text,
        glyph_mode=args.glyph_mode,
        guidance_batching=args.guidance_batching or "auto",
        **approximations(args),
    )


def plan_request(args: argparse.Namespace, prompt: str):
    """The `PlanRequest` of a prompt and these arguments, checked, images read and LoRA files looked at."""
    from ..pipeline.planning.make_plan import PlanRequest

    check_loras(args)
    seed = args.seed if args.plan_seed is None else args.plan_seed
    references, sampling = read_images(args.image), (args.temperature, args.top_p)
    return PlanRequest(prompt, args.height, args.width, references, seed, args.count, *sampling, args.plan_rows)


def choose_size(args: argparse.Namespace) -> None:
    """Fill in the size: given, of a shape, or for an edit the first reference's shape at about one megapixel.

    With `--fit` one off the grid is rounded up, and `args.cut` is what the images are cut back to.
    """
    given = not (isinstance(args.width, Unset) and isinstance(args.height, Unset))
    known = _known_sizes(args)
    if args.aspect:
        if given:
            raise InputError("--aspect chooses the size; leave out --width and --height, or --aspect")
        args.height, args.width = known.nearest(args.aspect)
    elif args.image and not given:
        reference = images.read(args.image[0])
        args.height, args.width = known.like(reference.height, reference.width)
    if getattr(args, "fit", False):
        args.cut = args.height, args.width
        args.height, args.width = fitting(*args.cut)


def warn_of_size(args: argparse.Namespace) -> None:
    """Say on standard error that the checkpoint was never trained on this size, which is used all the same."""
    if warning := _known_sizes(args).warning(args.height, args.width):
        print(warning, file=sys.stderr)


def _known_sizes(args: argparse.Namespace):
    from ..pipeline.loading.checkpoint import Checkpoint, named_folder

    return Checkpoint(named_folder(args.model), args.model).trained_sizes


def open_model(args: argparse.Namespace, bar, local_only: bool = False, saved=None):
    """The `GlmImage` of these arguments, which is to draw what they say or a `saved` plan; `bar` shows loading."""
    from ..pipeline.loading.checkpoint import resolve
    from ..pipeline.loading.memory_needs import CheckpointSizes
    from ..pipeline.loading.placement import choose

    checkpoint = resolve(args.model, args.revision, local_only, files=_weight_files(args))
    checkpoint.check()
    sizes = CheckpointSizes.of(checkpoint.folder, checkpoint.files)
    request = placement_request(args, checkpoint.folder, saved)
    placement = choose(sizes, request, report=lambda text: print(text, file=sys.stderr))
    model = placed_model(args, checkpoint, placement)
    model.components.on_load = bar
    return model


def placed_model(args: argparse.Namespace, checkpoint, placement):
    """The `GlmImage` of a checkpoint with what these arguments add to it, checked; no weight of it is read."""
    from ..pipeline.glm_image import GlmImage

    model = GlmImage(checkpoint, placement, bool(getattr(args, "compile", None)))
    model.use_planner_loras(*(getattr(args, "planner_lora", None) or ()))
    model.use_loras(*(getattr(args, "lora", None) or ()))
    return model


def known_sizes(args: argparse.Namespace):
    """(sizes of the checkpoint of these arguments, itself), of the release and None where it is not here."""
    from ..pipeline.errors import CheckpointError
    from ..pipeline.loading.checkpoint import resolve
    from ..pipeline.loading.memory_needs import CheckpointSizes

    files, name = _weight_files(args), args.model or HUB_ID
    try:
        checkpoint = None if name.startswith("modelscope:") else resolve(name, args.revision, True, files=files)
    except CheckpointError:
        if name != HUB_ID:
            raise
        checkpoint = None
    if checkpoint is None:
        return CheckpointSizes.of_release(), None
    return CheckpointSizes.of(checkpoint.folder, checkpoint.files), checkpoint


def _weight_files(args: argparse.Namespace):
    from ..pipeline.loading.checkpoint import weight_files

    return weight_files(getattr(args, "planner_file", None), getattr(args, "decoder_file", None))


def placement_request(args: argparse.Namespace, folder: Path | None, saved=None):
    """The `PlacementRequest` of these arguments: where `folder`'s model shall go, and what it draws."""
    from ..pipeline.loading.placement import Offload, PlacementRequest

    return PlacementRequest(
        args.device,
        args.dtype,
        planner_device=args.planner_device,
        decoder_device=args.decoder_device,
        offload=Offload.of(args.offload),
        images=image_batch(args, folder, saved),
        planner_weights=_planner_weights(args),
        decoder_weights=args.decoder_weights or "auto",
        lora_numbers=_lora_numbers(args),
    )


def _lora_numbers(args: argparse.Namespace) -> dict[str, int]:
    """How many numbers the LoRAs of each component hold."""
    from ..pipeline.loading.lora_files import TARGETS, numbers_of

    given = {name: getattr(args, option, None) or () for option, name in LORAS.items()}
    return {name: sum(numbers_of(TARGETS[name], path) for path, _ in pairs) for name, pairs in given.items() if pairs}


def image_batch(args: argparse.Namespace, folder: Path | None, saved=None):
    """The `ImageBatch` of these arguments, or of a saved plan."""
    from ..pipeline.loading.work_needs import ImageBatch

    guidance = "off" if getattr(args, "cfg", 1.5) == 1 else getattr(args, "guidance_batching", None) or "auto"
    cached = getattr(args, "step_cache", None) is not None
    how = {"steps": getattr(args, "steps", 50), "guidance": guidance, "step_cache": cached}
    if saved is not None:
        return ImageBatch(saved.height, saved.width, len(saved), tuple(r.grid for r in saved.references), **how)
    size = (getattr(args, "height", 1024), getattr(args, "width", 1024), getattr(args, "count", 1))
    return ImageBatch(*size, _reference_grids(getattr(args, "image", None) or [], folder), **how)


def _reference_grids(paths: list[Path], folder: Path | None) -> tuple[tuple[int, int], ...]:
    """What the checkpoint makes of these images' sizes."""
    from ..pipeline.planning.references import reference_grids

    return reference_grids([(image.height, image.width) for image in read_images(paths)], folder)


def _planner_weights(args: argparse.Namespace) -> str:
    if args.planner_int8 and args.planner_weights not in (None, "w8"):
        raise InputError("--planner-int8 is --planner-weights w8; leave one of them out")
    return "w8" if args.planner_int8 else args.planner_weights or "auto"


def read_images(paths: list[Path]) -> list[Image.Image]:
    """Reference images, read whole, so that a broken one is named before anything else is done."""
    return [images.read(path) for path in paths]


def check_output(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse, before minutes of work, a file that could not be written."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"output {path} must end in {' or '.join(suffixes)}")
    check_writable(path)
