"""Messages of errors: whatever they quote, they can be printed, logged and shown, and they are short."""

import io
import pickle
import sys

import pytest
from comfyui_glm_image.pipeline.errors import CheckpointError, DeviceError, InputError
from comfyui_glm_image.pipeline.remote.errors import BusyError

FOREIGN = {
    "surrogate": "a\ud83db",
    "control": "a\x00\x1b[31m\x07b",
    "direction": "a\u202eb\u2066c",
    "long": "x" * 1_000_000,
    "long escapes": "\ud800" * 1000,
    "lines": "a\u2028b\rc\nd",
}


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("kind", [InputError, CheckpointError, BusyError])
def test_a_message_can_be_encoded_and_is_short(kind, text):
    message = str(kind(f"the value {text} is wrong; use another"))
    assert message.encode() and len(message) < 300
    assert message.startswith("the value ") and message.endswith("; use another")
    assert not set(message) & set("\x00\x1b\x07\r\n\u2028\u202e\u2066")


def test_a_message_fits_the_terminals_encoding(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert str(InputError("no font has '猫'")) == r"no font has '\u732b'"


def test_ordinary_messages_stay_as_they_are():
    assert str(InputError("width 1000 is not a multiple of 32; use 992 or 1024")).endswith("use 992 or 1024")
    assert str(DeviceError("too tight\ncpu: 3 GiB")) == "too tight\ncpu: 3 GiB"
    assert str(pickle.loads(pickle.dumps(InputError("a\ud800")))) == r"a\ud800"
