"""A LoRA from images with captions: check, prepare, then a plain loop whose state is on disk.

A run's folder holds the adapter's file, `state.safetensors`, `log.jsonl`, `loss.png` where matplotlib is there,
`samples/` and `cache/`. The same settings in the same folder go on where a run ended, however it ended: what a step
does depends on its number, the seed and the state alone.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ...pipeline.devices.device import current, resolve_device
from ...pipeline.devices.memory import explaining_out_of_memory
from ...pipeline.errors import GlmImageError, InputError
from ...pipeline.files import check_writable
from ...pipeline.geometry import TOKEN
from ...pipeline.glm_image import GlmImage
from ...pipeline.loading.checkpoint import GLYPH, resolve, title
from ...pipeline.loading.placement import Placement
from ...pipeline.progress import Progress
from ..plots import Panel, write_panels
from .adapters import FILES, add_adapter, require_peft, write_adapter
from .batches import Batches
from .decoder_loss import DecoderLoss
from .layers import streamline
from .memory import check as check_memory
from .pictures import Picture, read_folder
from .planner_loss import PlannerLoss, strip
from .prepared import Item, digest, embed_texts, prepare
from .run_state import LossLog, RunState, read_log
from .samples import Samples
from .settings import LoraSettings

CLIP = 1.0  # largest norm of the gradient of a step
LOG_EVERY = 10  # steps whose figures wait on the device

Report = Callable[[str], None]


def train(settings: LoraSettings, report: Report, progress: Progress | None = None) -> Path:
    """Train, or go on training, until `settings.steps` are done -> the adapter's file.

    `report(sentence)` says what is going on; `progress(done, total, stage="prepare" or "train", loss=)` may raise to
    interrupt, after which the run can go on. Raises `InputError` before anything is loaded.
    """
    require_peft()
    pictures = read_folder(settings.data, settings.pixels)
    checkpoint, device = resolve(settings.model, settings.revision), resolve_device(settings.device)
    checkpoint.check()
    if form := checkpoint.weights(settings.folder).form:
        raise InputError(
            f"{checkpoint.folder}: the {title(settings.folder)}'s weights are rounded to {form}; a LoRA is trained on "
            "whole weights, and works with rounded ones then: give the checkpoint that was rounded"
        )
    check_writable(settings.out / FILES[settings.component])
    placement = Placement.on(device, settings.dtype)
    largest = max((picture.size for picture in pictures), key=lambda size: size[0] * size[1])
    grid = tuple(side // TOKEN for side in largest)
    needs = check_memory(checkpoint.folder, settings, device, placement.dtypes[settings.folder], grid)
    settings = replace(settings, keep_layers=needs.keep)
    report(f"{len(pictures)} images; {settings.component} on {device}, about {needs.as_text()}")
    model = GlmImage(checkpoint, placement)
    with current(device), explaining_out_of_memory(f"training the {settings.component}", device):
        return Run(settings, model, pictures, report, progress).finish()


class Run:
    """One training from its images to its file."""

    def __init__(
        self,
        settings: LoraSettings,
        model: GlmImage,
        pictures: list[Picture],
        report: Report,
        progress: Progress | None = None,
    ):
        self.settings, self.model, self.report, self.progress = settings, model, report, progress
        items = prepare(model, pictures, settings, progress)
        identity = {**settings.identity, "images": digest(items)}
        del identity["data"]  # the same images may lie elsewhere
        self.state = RunState(settings.out, identity)
        self.step = self.state.step()
        self.batches = Batches(items, settings.batch, settings.seed)
        self.samples = Samples(model, settings, self.batches.commonest)
        self.samples.plan_ahead()
        self.device = model.placement.devices[settings.folder]
        self.loss = self._loss(items)
        self.parameters = add_adapter(self.module, settings)
        streamline(self.module)
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay
        )
        if self.step:
            self.state.load(self.parameters, self.optimiser)
            report(f"going on after step {self.step}")
        self.log = LossLog(settings.out, self.step)

    @property
    def module(self) -> torch.nn.Module:
        return self.model.components[self.settings.folder]

    def _loss(self, items: list[Item]) -> PlannerLoss | DecoderLoss:
        kept = self.settings.checkpointing, self.settings.keep_layers or 0
        if self.settings.component == "planner":
            strip(self.module)
            loss = PlannerLoss(self.module, self.model.settings.prompts, *kept)
        else:
            nothing = embed_texts(self.model, [])
            self.model.release(GLYPH)
            loss = DecoderLoss(self.module, self.model.scheduler, nothing, self.settings.drop, *kept)
        loss.check(items)
        return loss

    def finish(self) -> Path:
        """The steps that are left -> the adapter's file."""
        if self.step == 0 and self.samples.due(0):
            self.samples.write(0)
        began, first = time.monotonic(), self.step
        while self.step < self.settings.steps:
            self._take_step()
            last = self.step == self.settings.steps
            if last or self.step % LOG_EVERY == 0:
                self._show(began, first)
            if last or self.step % self.settings.save_every == 0:
                self._save()
            if self.samples.due(self.step):
                self.samples.write(self.step)
        path = write_adapter(self.settings.out, self.parameters, self.settings)
        if importlib.util.find_spec("matplotlib"):
            draw_curves(self.settings.out)
        return path

    def _take_step(self) -> None:
        """One change of the adapter; nothing here waits for the device."""
        rate = self.settings.rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        count, sums = self.settings.accumulate, {}
        for k in range(self.step * count, (self.step + 1) * count):
            generator = torch.Generator().manual_seed(self.settings.seed * 2**32 + k)
            figures = self.loss(self.batches[k], self.device, generator)
            (figures["loss"] / count).backward()
            for name, value in figures.items():
                sums[name] = sums.get(name, 0) + value.detach() / count
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.log.add(self.step, **sums, norm=norm, lr=rate)

    def _show(self, began: float, first: int) -> None:
        """Write and report the figures of the last steps."""
        line = self.log.flush()[-1]
        if line["loss"] != line["loss"]:
            raise GlmImageError(f"the loss is not a number at step {self.step}; use a lower --lr, or another --dtype")
        if self.progress:
            self.progress(self.step, self.settings.steps, stage="train", loss=line["loss"])
        seconds = (time.monotonic() - began) / (self.step - first)
        figures = ", ".join(f"{name} {line[name]:.4g}" for name in line if name not in ("step", "lr", "norm"))
        self.report(f"step {self.step} of {self.settings.steps}: {figures}; {seconds:.3g} s a step")

    def _save(self) -> None:
        """State and adapter; the log is on disk before the state that it belongs to."""
        if self.log.waiting:
            self.log.flush()
        self.state.save(self.step, self.parameters, self.optimiser)
        write_adapter(self.settings.out, self.parameters, self.settings)


def draw_curves(folder: Path) -> None:
    """`log.jsonl` -> `loss.png`: means over a fiftieth of the run."""
    lines = read_log(folder)
    width = max(1, len(lines) // 50)
    groups = [lines[start : start + width] for start in range(0, len(lines), width)]
    names = [name for name in lines[0] if name not in ("step", "lr", "norm")]
    curves = {
        name: [(group[-1]["step"], sum(line[name] for line in group) / len(group)) for group in groups]
        for name in names
    }
    losses = {name: curve for name, curve in curves.items() if not name.endswith("_right")}
    shares = {name: curve for name, curve in curves.items() if name.endswith("_right")}
    panels = [Panel("loss", "steps", losses)] + ([Panel("tokens that are right", "steps", shares)] if shares else [])
    write_panels(panels, folder / "loss.png")
