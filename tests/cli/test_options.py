"""The command line is a public interface: what version 0.1.0 took is taken still, and means the same."""

import argparse
import json
from importlib import import_module
from pathlib import Path

import pytest
from comfyui_glm_image.cli import main
from comfyui_glm_image.tests.conftest import ROOT

BEFORE = json.loads((ROOT / "tests" / "data" / "options_0.1.0.json").read_text(encoding="utf-8"))


def options_of(command):
    parser = argparse.ArgumentParser()
    import_module(main.COMMANDS[command][0], main.__package__).add_arguments(parser)
    return {" ".join(action.option_strings) or action.dest: action for action in parser._actions}


@pytest.mark.parametrize("command", BEFORE)
def test_every_option_of_the_first_version_is_still_taken(command):
    now = options_of(command)
    assert not BEFORE[command].keys() - now.keys()
    for name, before in BEFORE[command].items():
        default = str(now[name].default) if isinstance(now[name].default, Path) else now[name].default
        assert (name, now[name].nargs, default) == (name, before["nargs"], before["default"])
        assert set(before["choices"] or ()) <= set(now[name].choices or ())
