"""Options for a layout of texts: `--layout FILE` and how strongly each stage follows it."""

import argparse
from pathlib import Path

from ..pipeline.errors import InputError

WORDS = ("percentages", "words", "none")


def add_arguments(parser: argparse.ArgumentParser, denoising: bool = True) -> None:
    group = parser.add_argument_group("layout", "texts in places of your choice, see docs/layout.md")
    group.add_argument(
        "--layout", type=Path, metavar="FILE", help="texts and places: JSON or lines such as 'title: OPEN @ top 25%%'"
    )
    group.add_argument(
        "--layout-prompt",
        choices=WORDS,
        default=WORDS[0],
        help="how the prompt is told of texts and places: words and percentages, words alone, or not at all "
        "(default percentages)",
    )
    group.add_argument("--layout-language", default="english", help="of these words: english or chinese")
    group.add_argument(
        "--layout-mode",
        choices=("off", "bias", "force"),
        default="bias",
        help="tokens of the layout's sketch: not used, favoured or imposed in their boxes (default bias)",
    )
    group.add_argument(
        "--layout-strength", type=float, default=6.0, help="of a bias; 20 is as good as force (default 6)"
    )
    group.add_argument(
        "--layout-grids", choices=("both", "preview", "full"), default="both", help="grids that follow (default both)"
    )
    group.add_argument("--layout-falloff", type=float, default=0.0, help="tokens of a soft edge inwards (default 0)")
    if denoising:
        group.add_argument(
            "--layout-attention",
            type=float,
            default=0.3,
            help="share of the steps in which a box sees only its own text; 0 is off (default 0.3)",
        )
        group.add_argument(
            "--layout-sketch-level",
            type=float,
            default=1.0,
            help="noise level down to which boxes follow the sketch; 1 is off (default 1)",
        )


def read(args: argparse.Namespace, height: int, width: int):
    """The `LayoutControl` of these arguments for a page of these pixels, checked; None without `--layout`."""
    if args.layout is None:
        return None
    from ..pipeline.layout.control import PlanControl
    from ..pipeline.layout.layout_control import LayoutControl
    from ..pipeline.layout.parse import read_layout

    plan = PlanControl(args.layout_mode, args.layout_strength, args.layout_grids, args.layout_falloff)
    shares = {"attention": getattr(args, "layout_attention", 0.0)}
    shares["sketch_level"] = getattr(args, "layout_sketch_level", 1.0)
    return LayoutControl(read_layout(_text(args.layout), height, width), plan, **shares).checked(height, width)


def prompt(args: argparse.Namespace, layout) -> str:
    """The prompt with the layout's texts and places, as *GLM-Image Text Layout* writes it."""
    if layout is None or args.layout_prompt == "none":
        return args.prompt
    from ..pipeline.layout.prompt import to_prompt

    return to_prompt(layout.layout, args.prompt, args.layout_language, sizes=args.layout_prompt == WORDS[0])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"layout {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"layout {path} cannot be read: {error}") from None
