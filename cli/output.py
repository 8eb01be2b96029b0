"""Names of output files."""

from pathlib import Path


def numbered(path: Path, count: int) -> list[Path]:
    """`out.png`, or `out_0.png`, `out_1.png` ... for several."""
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}_{k}") for k in range(count)]
