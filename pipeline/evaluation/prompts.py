"""Benchmarks' prompts with the texts that their images must show."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..loading.checkpoint import BUNDLED
from ..models.config import read_json
from ..text import quoted_texts

BENCHMARKS = ("small", "cvtg2k", "longtext")
EDITS = "small-edit"  # images to edit, scored by what changed and what stayed
SMALL = BUNDLED / "benchmark"


@dataclass(frozen=True)
class Case:
    """One prompt: `group` is what scores are reported by, `name` its file name, size None is the user's choice."""

    name: str
    group: str
    prompt: str
    texts: tuple[str, ...]
    height: int | None = None
    width: int | None = None


def load_cases(benchmark: str, folder: Path | None = None, limit: int | None = None) -> list[Case]:
    """The prompts of a benchmark; `limit` keeps the first of each group. `small` comes with the bundled checkpoint."""
    if benchmark not in BENCHMARKS:
        raise InputError(f"benchmark {benchmark!r} is not known; use {', '.join((*BENCHMARKS, EDITS))}")
    if folder is None and benchmark != "small":
        raise InputError(f"{benchmark} does not come with this package; download it and name its folder with --data")
    folder = folder or SMALL
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder with the data of {benchmark}")
    cases = _read_longtext(folder) if benchmark == "longtext" else _read_regions(folder)
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    return [case for group in groups.values() for case in group[:limit]]


def _read_regions(folder: Path) -> list[Case]:
    """CVTG-2K's layout: `N.json` holds, for N regions, `data_list` of `index`, `prompt` and `sentence_list`."""
    files = sorted((path for path in folder.glob("*.json") if path.stem.isdigit()), key=lambda path: int(path.stem))
    if not files:
        raise InputError(f"{folder} holds no 2.json ... 5.json; name the folder that does")
    cases = []
    for path in files:
        entries = read_json(path).get("data_list")
        if not isinstance(entries, list):
            raise InputError(f"{path}: key 'data_list' is missing or not a list")
        for entry in entries:
            missing = {"index", "prompt"} - entry.keys()
            if missing:
                raise InputError(f"{path}: an entry of data_list has no {', '.join(sorted(missing))}")
            texts = quoted_texts(entry["prompt"], "prompt_order") or entry.get("sentence_list") or []
            size = entry.get("height"), entry.get("width")
            cases.append(Case(f"{path.stem}_{entry['index']}", path.stem, entry["prompt"], tuple(texts), *size))
    return cases


def _read_longtext(folder: Path) -> list[Case]:
    """LongText-Bench: `text_prompts.jsonl` and `text_prompts_zh.jsonl` of `prompt_id`, `prompt`, `text`, `length`."""
    cases = []
    for language, file in (("en", "text_prompts.jsonl"), ("zh", "text_prompts_zh.jsonl")):
        path = folder / file
        if not path.exists():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                texts = [entry["text"]] if isinstance(entry["text"], str) else entry["text"]
                name = f"{language}_{entry['prompt_id']}"
                cases.append(Case(name, language, entry["prompt"], tuple(texts)))
            except (json.JSONDecodeError, KeyError) as error:
                raise InputError(f"{path} line {number} is not an entry of LongText-Bench: {error!r}") from None
    if not cases:
        raise InputError(f"{folder} holds no text_prompts.jsonl or text_prompts_zh.jsonl")
    return cases
