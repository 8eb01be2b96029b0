"""`glm-image download`: a checkpoint's files from the hub; interrupted downloads resume."""

import argparse

from ..pipeline.loading.checkpoint import HUB_ID, resolve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default=HUB_ID, help=f"hub id or modelscope:ID (default {HUB_ID})")
    parser.add_argument("--revision", help="branch, tag or commit")


def run(args: argparse.Namespace) -> int:
    checkpoint = resolve(args.model, args.revision)
    checkpoint.check()
    print(checkpoint.folder)
    return 0
