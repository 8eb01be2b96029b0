"""Images of the adapter as it is, on the way: what the curve of a loss does not show."""

from pathlib import Path

from ...pipeline.files import replacing
from ...pipeline.geometry import TOKEN
from ...pipeline.glm_image import GlmImage
from ...pipeline.images import to_pil
from ...pipeline.loading.checkpoint import COMPONENTS, PLANNER
from ...pipeline.plan import Plan
from ...pipeline.planning.make_plan import PlanMemory
from .settings import LoraSettings


class Samples:
    """`samples/000250_0.png` and so on in the run's folder: every prompt with the same seed each time."""

    def __init__(self, model: GlmImage, settings: LoraSettings, grid: tuple[int, int]):
        self.model, self.settings = model, settings
        self.size = tuple(TOKEN * side for side in grid)
        self.plans: list[Plan] | None = None

    def plan_ahead(self) -> None:
        """Plan for a decoder before it is trained, so that the planner need not be there afterwards."""
        if self.settings.samples and self.settings.component == "decoder":
            self.plans = self._plans()
            self.model.release(PLANNER)

    def due(self, step: int) -> bool:
        """Whether `step` steps are one of the times to look."""
        return bool(self.settings.samples) and (step % self.settings.sample_every == 0 or step == self.settings.steps)

    def write(self, step: int) -> list[Path]:
        """Render every prompt with the adapter; frees what training does not need."""
        plans = self.plans or self._plans()
        written = []
        for number, plan in enumerate(plans):
            latents = self.model.denoise(plan, self.settings.sample_steps, seed=self.settings.seed)
            path = self.settings.out / "samples" / f"{step:06d}_{number}.png"
            with replacing(path) as temporary:
                to_pil(self.model.decode(latents))[0].save(temporary, format="PNG")
            written.append(path)
        self.model.release(*(name for name in COMPONENTS if name != self.settings.folder))
        return written

    def _plans(self) -> list[Plan]:
        self.model.memory = PlanMemory()  # prompts that were read by an earlier adapter
        prompts = self.settings.samples
        plans = [self.model.plan(prompt, *self.size, seed=self.settings.seed) for prompt in prompts]
        self.model.memory = PlanMemory()  # steps have no room for caches and graphs of plans
        return plans
