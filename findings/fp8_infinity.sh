#!/usr/bin/env bash
# Infinity in 8-bit floats. PyTorch casts inf to 448, the largest float8_e4m3fn, and any larger number too; ml_dtypes
# (numpy, JAX) casts the same numbers to NaN. A weight that overflowed before quantisation is a NaN that any check finds
# in a file made by one, and an ordinary number in a file made by the other.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.4 ml_dtypes==0.6.0
"$work/venv/bin/python" - <<'PY'
import math

import ml_dtypes
import numpy as np
import torch

values = [math.inf, -math.inf, 1e6, 465.0]
print("torch", torch.__version__, "ml_dtypes", ml_dtypes.__version__, "values", values)
by_torch = torch.tensor(values).to(torch.float8_e4m3fn).float().tolist()
by_numpy = np.array(values, np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float32).tolist()
print("torch.float8_e4m3fn      ", by_torch)
print("ml_dtypes.float8_e4m3fn  ", by_numpy)
assert by_torch == [448.0, -448.0, 448.0, 448.0]
assert all(math.isnan(value) for value in by_numpy)
kept = torch.tensor(values[:1]).to(torch.float8_e5m2).float().item()
other = torch.tensor(values[:1]).to(torch.float8_e4m3fnuz).float().item()
print("torch of inf: e5m2", kept, " e4m3fnuz", other)
assert kept == math.inf and math.isnan(other)
PY
