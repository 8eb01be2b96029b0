#!/usr/bin/env bash
# vLLM-Omni 0.30.0, GLM-Image over /v1/chat/completions: seed and guidance_scale of a request do not reach the decoder.
# The request's seed goes to the planner alone; the decoder keeps the deploy file's seed 42 and guidance 1.5, and of the
# request takes height, width and num_inference_steps. So ten seeds give ten layouts under one and the same noise, and
# guidance does nothing, without an error. The images form of the same server passes both on. What reaches the decoder
# in the chat form is `sampling_params_list: [planner, decoder]` at the top of the body, both entries whole.
# Runs the server's own functions on the deploy file of the package. 9 MB of downloads.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m pip download --disable-pip-version-check -q --no-deps -d "$folder" vllm-omni==0.30.0
python3 - "$folder"/vllm_omni-*.whl <<'PYTHON'
import ast
import copy
import re
import sys
import textwrap
import zipfile
from types import MethodType, SimpleNamespace
from typing import Any

wheel = zipfile.ZipFile(sys.argv[1])
text = wheel.read("vllm_omni/entrypoints/openai/serving_chat.py").decode()
tree = ast.parse(text)


class Params(SimpleNamespace):
    def clone(self):
        return copy.copy(self)


def method(name):
    """A method of the server's chat handler, as it stands in the package."""
    node = next(node for node in ast.walk(tree) if getattr(node, "name", "") == name)
    names = {"SamplingParams": Params, "ChatCompletionRequest": object, "Any": Any}
    exec(textwrap.dedent(ast.get_source_segment(text, node, padded=True)), names)
    return names[name]


def fields():
    """`_OPENAI_SAMPLING_FIELDS`: what of a request may override the planner's settings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "_OPENAI_SAMPLING_FIELDS":
            return ast.literal_eval(node.value)


def taken_later():
    """Attributes that `create_chat_completion` sets on a stage's settings afterwards."""
    names = set()
    for loop in ast.walk(tree):
        if isinstance(loop, ast.For) and ast.unparse(loop.target) == "(idx, sp)":
            for node in ast.walk(loop):
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("sp."):
                    names.add(node.targets[0].attr)
    return names


deploy = wheel.read("vllm_omni/deploy/glm_image.yaml").decode()
blocks = re.findall(r"default_sampling_params:\n((?: {6}\w+: .*\n)+)", deploy)
planner, decoder = (Params(**dict(re.findall(r"(\w+): (.*)", block))) for block in blocks)
for name in ("seed", "num_inference_steps", "guidance_scale"):
    setattr(decoder, name, float(getattr(decoder, name)))
stages = [planner, decoder]
server = SimpleNamespace(engine_client=SimpleNamespace(default_sampling_params_list=stages))
server._OPENAI_SAMPLING_FIELDS = fields()
server._get_comprehension_stage_index = lambda: 0
server._apply_request_overrides = MethodType(method("_apply_request_overrides"), server)
asked = {"messages": [], "seed": 7, "guidance_scale": 4.0, "num_inference_steps": 20}
request = SimpleNamespace(**asked, model_fields_set=set(asked))
planner, decoder = method("_build_sampling_params_list_from_request")(server, request)
later = taken_later()
print(sys.argv[1].rpartition("/")[2])
print("asked for:", {name: value for name, value in asked.items() if name != "messages"})
print("planner: seed", planner.seed)
print("decoder:", vars(decoder), "; of the request it takes afterwards:", ", ".join(sorted(later)))
assert planner.seed == 7 and (decoder.seed, decoder.guidance_scale) == (42, 1.5)
assert "num_inference_steps" in later and not {"seed", "guidance_scale"} & later
PYTHON
