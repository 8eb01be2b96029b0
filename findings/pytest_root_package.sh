#!/usr/bin/env bash
# pytest imports the __init__.py at the root of a repository, outside of any package, when it collects tests below it.
#
# A ComfyUI pack is such a repository: ComfyUI imports its root folder as a package, so relative imports in the root
# __init__.py work there. pytest runs the same file as the lone module "__init__", also with --import-mode=importlib,
# and a relative import at its top ends every test: "attempted relative import with no known parent package". An import
# inside a function is harmless, which is why the pack's entry point imports its nodes when it is called.
#
# Exits 0 while pytest behaves so, 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q "pytest==8.4.2"
"$work/venv/bin/python" -m pytest --version

pack() { # NAME CONTENT-OF-INIT: a repository with one test that passes
  mkdir -p "$work/$1/tests"
  printf '%s\n' "$2" >"$work/$1/__init__.py"
  echo "VALUE = 1" >"$work/$1/inner.py"
  echo "def test_nothing(): pass" >"$work/$1/tests/test_one.py"
  (cd "$work/$1" && "$work/venv/bin/python" -m pytest -q --import-mode=importlib -p no:cacheprovider 2>&1) || true
}

eager=$(pack my-eager-pack "from .inner import VALUE")
lazy=$(pack my-lazy-pack $'def entry():\n    from .inner import VALUE\n    return VALUE')
echo "--- relative import at the top of the root __init__.py"
grep -m 1 "relative import with" <<<"$eager" || true
echo "$eager" | tail -n 1
echo "--- relative import inside a function of it"
echo "$lazy" | tail -n 1
grep -q "relative import with no known parent package" <<<"$eager" && grep -q "^1 passed" <<<"$lazy"
