"""Errors a user can act on. The command line prints them as one line; ComfyUI shows them at the node."""

import re
import sys

LONGEST = 280  # characters of a message that came about by one value, with room for what is put before it
HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class GlmImageError(Exception):
    """Base of every error this package raises on purpose.

    Messages quote what came, which may be anything; here they become one line that every terminal, log and page of
    this process can take: ComfyUI's worker ends for good when its log cannot encode a message.
    """

    longest, lines = LONGEST, False

    def __init_subclass__(cls):
        """ComfyUI calls a pack's modules by their path, which its page would show beside every error."""
        package, _, module = cls.__module__.partition(".")
        if "/" in package or "\\" in package:
            cls.__module__ = f"comfyui_glm_image.{module}"

    def __init__(self, message: str = ""):
        super().__init__(presentable(str(message), self.longest, self.lines))


class CheckpointError(GlmImageError):
    """A checkpoint folder or file cannot be used; the message names the file and, where it matters, the key."""


class InputError(GlmImageError, ValueError):
    """A value from the user is out of range; the message says what came, what is accepted and what to do."""


class FileError(GlmImageError, OSError):
    """A file cannot be written; the message names it and why."""


class DeviceError(GlmImageError):
    """A device was asked for that cannot be had; the message explains the installation's fault in one paragraph."""

    longest, lines = 4000, True  # the words are ours, and a placement is explained device by device


def presentable(text: str, longest: int = LONGEST, lines: bool = False) -> str:
    """A message that can be encoded and cannot steer a terminal, on one line unless it may have `lines`.

    Of a long one the middle is left out: its start says what came, its end what to do.
    """
    if len(text) > 2 * longest:  # all that can be left of it
        text = text[:longest] + text[-longest:]
    text = HARMFUL.sub(lambda found: "\n" if lines and found[0] == "\n" else repr(found[0])[1:-1], text)
    for stream in (sys.stdout, sys.stderr):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    if len(text) > longest:
        tail = longest // 3
        text = text[: longest - tail - 5] + " ... " + text[-tail:]
    return text
