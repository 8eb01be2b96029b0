#!/usr/bin/env bash
# gguf 0.10.0 imports sentencepiece as soon as it is imported itself, and does not declare it: a plain `pip install` makes
# a package that cannot even widen a tensor. gguf 0.17.1 works without it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
for version in 0.10.0 0.17.1; do
    "$work/venv/bin/pip" install -q "gguf==$version" numpy==2.3.4
    "$work/venv/bin/python" - "$version" <<'PY'
import importlib.metadata as metadata
import sys

version, declared = sys.argv[1], sorted(line.split()[0] for line in metadata.requires("gguf") if "extra" not in line)
try:
    from gguf.quants import dequantize  # noqa: F401

    missing = None
except ModuleNotFoundError as error:
    missing = error.name
print(f"gguf {version} declares {', '.join(declared)}; imported, it {f'lacks {missing}' if missing else 'works'}")
assert "sentencepiece" not in declared and missing == {"0.10.0": "sentencepiece", "0.17.1": None}[version]
PY
done
