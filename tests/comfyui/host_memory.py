"""A checkpoint of 0.9 GB, and the anonymous host memory of the program that uses it, by Linux's account."""

import json
import re
import shutil
from pathlib import Path

import torch
from comfyui_glm_image.pipeline.loading.checkpoint import DECODER, PLANNER
from comfyui_glm_image.pipeline.models.config import DitConfig, VisionLanguageConfig
from comfyui_glm_image.pipeline.models.planner import Planner
from comfyui_glm_image.pipeline.models.transformer import Dit
from safetensors.torch import save_file

REPEATS = 8  # of the same numbers in a weight; to make as many random ones takes seconds
LARGER = {  # most of a planner in its embedding, which takes no time
    PLANNER: (Planner, VisionLanguageConfig, {"text_config": {"intermediate_size": 8192, "vocab_size": 2_600_000}}),
    DECODER: (Dit, DitConfig, {"num_layers": 28, "num_attention_heads": 16}),
}


def larger_checkpoint(folder: Path, out: Path) -> Path:
    """The checkpoint in `folder` with a planner of 700 MB and a decoder of 200 MB, random and in bfloat16."""
    shutil.copytree(folder, out)
    for name, (build, config, changes) in LARGER.items():
        settings = json.loads((out / name / "config.json").read_text())
        for key, value in changes.items():
            settings[key] = settings[key] | value if isinstance(value, dict) else value
        for path in (out / name).glob("*.safetensors*"):
            path.unlink()
        (out / name / "config.json").write_text(json.dumps(settings))
        with torch.device("meta"):
            module = build(config.from_json(out / name / "config.json"))
        save_file(
            {key: random_weight(weight.shape) for key, weight in module.state_dict().items()},
            out / name / "model.safetensors",
        )
    return out


def random_weight(shape: torch.Size) -> torch.Tensor:
    """Norms are near one; what sums over many inputs is smaller."""
    noise = torch.randn(-(-shape.numel() // REPEATS)).bfloat16().repeat(REPEATS)[: shape.numel()].reshape(shape)
    return 1 + 0.1 * noise if len(shape) == 1 else noise / noise[0].numel() ** 0.5


def file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


class HostMemory:
    """Anonymous memory that a process has more than when this was made."""

    def __init__(self, pid: int):
        self.status = Path(f"/proc/{pid}/status")
        self.before = self.now()

    def now(self) -> int:
        """In bytes."""
        return int(re.search(r"RssAnon:\s+(\d+)", self.status.read_text())[1]) << 10

    @property
    def grown(self) -> int:
        return self.now() - self.before
