"""`glm-image download`: a checkpoint's files from the hub; interrupted downloads resume."""

import argparse

from ..pipeline.loading import HUB_ID
from ..pipeline.loading.checkpoint import download


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default=HUB_ID, help=f"hub id or modelscope:ID (default {HUB_ID})")
    parser.add_argument("--revision", help="branch, tag or commit")


def run(args: argparse.Namespace) -> int:
    print(download(args.model, args.revision).folder)
    return 0
