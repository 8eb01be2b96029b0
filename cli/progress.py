"""Progress bars for loading, planning and denoising, from the `progress` calls of `GlmImage`."""

from tqdm import tqdm

TITLES = {
    "load": "Loading",
    "quantize": "Rounding",
    "prompt": "Reading prompt",
    "plan": "Planning",
    "denoise": "Denoising",
    "prepare": "Preparing",
    "train": "Training",
}
UNITS = {
    "load": "B",
    "quantize": "B",
    "prompt": "tok",
    "plan": "tok",
    "denoise": "step",
    "prepare": "it",
    "train": "step",
}


class Bars:
    """`GlmImage`'s progress as one bar after another on standard error; silent where that is no terminal."""

    def __init__(self, quiet: bool = False):
        self.disable = True if quiet else None  # None: only on a terminal
        self.key: tuple | None = None
        self.bar: tqdm | None = None

    def __call__(self, done: int, total: int, stage: str, component: str = "", **_) -> None:
        if (stage, component) != self.key:
            self.close()
            self.key = (stage, component)
            title = " ".join(filter(None, (TITLES[stage], component)))
            scale = UNITS[stage] == "B"
            self.bar = tqdm(total=total, desc=title, unit=UNITS[stage], unit_scale=scale, disable=self.disable)
        self.bar.update(done - self.bar.n)
        if done == total:
            self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.key = self.bar = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_) -> None:
        self.close()
