"""Bad inputs by the thousand, in a process of their own so that their memory can be told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.tests.robustness import run

COUNT = os.environ.get("GLM_IMAGE_BAD_INPUTS", "2000")
SEED = os.environ.get("GLM_IMAGE_BAD_INPUTS_SEED", "0")


def test_every_bad_input_ends_right_or_in_one_sentence():
    command = [sys.executable, str(Path(run.__file__)), "--count", COUNT, "--seed", SEED]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["inputs"] == int(COUNT) and result["failed"] == 0 and result["grown_mb"] < run.MEGABYTES


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ValueError("x"), "ValueError: 'x'"),
        (KeyError("x"), "KeyError"),
        (InputError("width 5 is too small"), None),
        (InputError(""), "a message of 0 characters"),
    ],
)
def test_only_our_errors_with_words_in_them_are_refusals(error, fault):
    found = run.fault_of(error)
    assert found is None if fault is None else found.startswith(fault)


def test_a_failure_is_counted_and_told():
    tally = run.Tally()
    for number, case in enumerate((lambda: 1, lambda: [][1], lambda: InputError.fail)):
        run.attempt("lists", case, tally, number)
    assert tally.ends == {"taken": 1, "failed": 2}
    assert tally.failures[0] == "lists input 1: IndexError: 'list index out of range'"
