"""The command line `glm-image`. A command's module is imported when that command is called, and nothing before.

A command's module has `add_arguments(parser)` and `run(args) -> exit code`. Errors a user can act on are one line
and exit code 1; wrong arguments 2; Ctrl-C 130. `--debug` shows the traceback.
"""

import argparse
import logging
import os
import sys
from importlib import import_module

from ..pipeline.errors import GlmImageError, presentable

COMMANDS = {  # name -> (module, help)
    "generate": (".generate", "generate images from a prompt, or from a saved plan"),
    "plan": (".plan", "plan an image as tokens and save the plan"),
    "demo": (".demo", "generate an image with the bundled small checkpoint"),
    "download": (".download", "fetch a checkpoint's files"),
    "quantize": (".quantize", "write a checkpoint with weights of 8 or 4 bits"),
    "doctor": (".doctor", "versions, devices and memory, and what to fix"),
    "audit-npu": (".audit", "every operator of the model, and how an NPU runs it"),
    "device-check": (".device_check", "prove an installation on a device, with a report for an issue"),
    "compare": (".compare", "the reference's images beside ours on the same weights, with figures"),
    "bench": (".bench", "time each stage against the device's limits"),
    "train-lora": (".train_lora", "train a LoRA for planner or decoder on images with captions"),
    "eval": (".evaluate", "score a checkpoint on text-rendering benchmarks by OCR"),
}


class Parser(argparse.ArgumentParser):
    """As argparse's, whose sentences repeat a wrong value whole."""

    def error(self, message: str):
        super().error(presentable(message))


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # a broken torch_npu must not take torch with it
    debug = "--debug" in argv
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal of ASCII shows every name and text in some way
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (GlmImageError, OSError, UnicodeEncodeError) as error:  # the last: a name that no file can have
        if debug:
            raise
        message = str(error) if isinstance(error, GlmImageError) else presentable(str(error))
        print(f"glm-image: {message}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if debug or not _is_out_of_memory(error):
            raise
        advice = "out of memory; use a smaller image, fewer at once, or --offload stream"
        print(f"glm-image: {advice} ({error})", file=sys.stderr)
        return 1


def _run(argv: list[str]) -> int:
    parser = Parser(prog="glm-image", description="GLM-Image on Ascend NPUs, CUDA and CPU.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if word in COMMANDS), None)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        if name == chosen:
            import_module(module, __package__).add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO if args.debug else logging.WARNING, format="%(message)s")
    return import_module(COMMANDS[args.command][0], __package__).run(args)


def _is_out_of_memory(error: RuntimeError) -> bool:
    from ..pipeline.devices.memory import is_out_of_memory

    return is_out_of_memory(error)
