#!/usr/bin/env bash
# A byte tokenizer that does not keep bytes. transformers' ByT5 reads "</s>", "<pad>", "<unk>" and "<extra_id_0>" inside
# an ordinary text as single ids, and takes the spaces around them away; the byte count of a text is then not its token
# count, and the letters are gone for a model that is to spell them.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0
"$work/venv/bin/python" - <<'PY'
import transformers
from transformers import ByT5Tokenizer

print("transformers", transformers.__version__)
read = ByT5Tokenizer()
found = {text: read(text).input_ids for text in ("a < b", "a </s> b", "a  <pad>  b", "x <extra_id_0> y")}
for text, ids in found.items():
    print(f"{text!r:20} {len(text.encode())} bytes ->", ids)
assert len(found["a < b"]) == len("a < b") + 1  # bytes and the end
assert found["a </s> b"] == [100, 1, 101, 1]
assert found["a  <pad>  b"] == [100, 0, 101, 1]
assert found["x <extra_id_0> y"] == [123, 35, 259, 35, 124, 1]  # here the spaces stay
PY
