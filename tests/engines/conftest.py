"""`make test-engines`: two real engines, started once, or the one at ENGINE_URL; and the report of what they did."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.evaluation import ocr
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED
from comfyui_glm_image.pipeline.remote import PlannerSampling
from comfyui_glm_image.pipeline.remote.limits import AUTO
from comfyui_glm_image.tests.engines import engine
from comfyui_glm_image.tests.engines.setup import HOME

URL = os.environ.get("ENGINE_URL", "")
SIZE = os.environ.get("ENGINE_SIZE") or ("1024x1024" if URL else "192x96")
STEPS = int(os.environ.get("ENGINE_STEPS") or 20)
WORD, PROMPT = "HELLO", 'a red sign that says "HELLO" in white'
SEEDS = range(3, 7)  # the small checkpoint does not write every word as tesseract reads it
LINES: list[str] = []


@dataclass
class Served:
    """A server under test; `process` is None where it is somebody else's."""

    name: str
    url: str
    process: engine.Engine | None


def pytest_collection_modifyitems(items):
    """A server of somebody else is not killed; what is left out is said in the report."""
    for item in items:
        if URL and item.get_closest_marker("own_engines"):
            item.add_marker(pytest.mark.skip(reason="kills or needs both engines; not on the server at ENGINE_URL"))


def pytest_terminal_summary(terminalreporter):
    if not LINES:
        return
    left_out = [report.nodeid.split("::")[-1] for report in terminalreporter.stats.get("skipped", [])]
    lines = [*LINES, *(f"not run on this server: {name}" for name in left_out)]
    terminalreporter.section("engines")
    terminalreporter.write_line("\n".join(lines))
    if not URL:
        (HOME / "report.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def report():
    """Takes lines for the report."""
    return LINES.append


@pytest.fixture(scope="session")
def reader():
    """OCR that must be there: a missing one fails, since the word is the proof."""
    return ocr.available_engine("tesseract")


def reads(image, reader) -> bool:
    """Whether OCR finds the word."""
    return ocr.score_texts([WORD], ocr.read_words(image, reader)).correct == 1


@pytest.fixture(scope="session")
def planner():
    """Settings of the planner that is served."""
    folder = Path(os.environ["ENGINE_MODEL"]) if "ENGINE_MODEL" in os.environ else None if URL else BUNDLED
    return PlannerSampling.of_checkpoint(folder) if folder else PlannerSampling()


@pytest.fixture(scope="session")
def model():
    """The checkpoint that is served, here."""
    return GlmImage.from_pretrained(BUNDLED, device="cpu", dtype="fp32")


@pytest.fixture(scope="session")
def running():
    """name -> server; both engines start at once."""
    if URL:
        yield {AUTO: Served(AUTO, URL, None)}
        return
    processes = [engine.VllmOmni(), engine.Sglang()]
    try:
        for process in processes:
            process.wait()
        yield {process.name: Served(process.name, process.url, process) for process in processes}
    finally:
        for process in processes:
            process.stop()


@pytest.fixture(params=[AUTO] if URL else ["vllm-omni", "sglang"])
def served(request, running):
    return running[request.param]
