"""Errors a user can act on. The command line prints them as one line; ComfyUI shows them at the node."""


class GlmImageError(Exception):
    """Base of every error this package raises on purpose."""


class CheckpointError(GlmImageError):
    """A checkpoint folder or file cannot be used; the message names the file and, where it matters, the key."""


class InputError(GlmImageError, ValueError):
    """A value from the user is out of range; the message says what came, what is accepted and what to do."""


class DeviceError(GlmImageError):
    """A device was asked for that cannot be had; the message explains the installation's fault in one paragraph."""
