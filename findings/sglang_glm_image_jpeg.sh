#!/usr/bin/env bash
# SGLang 0.5.23 answers /v1/images/generations and /v1/images/edits for GLM-Image with a JPEG file of quality 75, unless
# the request names an output_format. OpenAI's images API, whose form the endpoint has, answers with PNG. Other models
# of the same package (Qwen-Image 2.1, Cosmos 3, Ming-Image) declare PNG as their default; GLM-Image declares none.
# Runs the package's own function that chooses the file's ending. 40 MB of downloads.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m pip download --disable-pip-version-check -q --no-deps -d "$folder" sglang==0.5.23
python3 - "$folder"/sglang-*.whl <<'PYTHON'
import ast
import sys
import zipfile
from typing import Optional

wheel = zipfile.ZipFile(sys.argv[1])
PACKAGE = "sglang/multimodal_gen/"


def source_of(file, name):
    """The text of a function or class of the package."""
    text = wheel.read(PACKAGE + file).decode()
    found = [node for node in ast.walk(ast.parse(text)) if getattr(node, "name", "") == name]
    return ast.get_source_segment(text, found[0])


names = {"Optional": Optional}
exec(source_of("runtime/entrypoints/openai/utils.py", "choose_output_image_ext"), names)
choose = names["choose_output_image_ext"]
print(sys.argv[1].rpartition("/")[2])
for asked in (None, "png"):
    print(f"output_format {asked!r}: the file ends in .{choose(asked, 'auto')}")
declared = "default_image_output_format" in source_of("configs/sample/glmimage.py", "GlmImageSamplingParams")
writer = wheel.read(PACKAGE + "runtime/entrypoints/utils.py").decode()
quality = "output_compression if output_compression is not None else 75" in writer
print(f"a default format declared for GLM-Image: {declared}; quality 75 where none is asked for: {quality}")

assert (choose(None, "auto"), choose("png", "auto")) == ("jpg", "png")
assert not declared and quality
PYTHON
