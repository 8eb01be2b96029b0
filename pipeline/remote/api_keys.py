"""Keys: from the environment or a file only its owner can read, and only for the server they belong to.

A key is tied to an origin, so that a workflow from somewhere else, naming its author's server, gets none.
"""

import json
import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote

from .addresses import Endpoint, parse_server
from .errors import KeyMissingError

HOSTED = {
    "https://api.z.ai": ("ZAI_API_KEY",),
    "https://open.bigmodel.cn": ("ZHIPUAI_API_KEY", "BIGMODEL_API_KEY"),
}
OWN_KEY, OWN_SERVERS = "GLM_IMAGE_API_KEY", "GLM_IMAGE_API_KEY_SERVERS"
KEY_FILE = "GLM_IMAGE_KEY_FILE"
DEFAULT_FILE = Path("~/.config/glm-image/keys.json")


class Key:
    """A secret that neither prints nor pickles."""

    __slots__ = ("_value",)

    def __init__(self, value: str, where: str):
        # http.client would name the whole value in its own complaint about such characters.
        if not value.isascii() or not value.isprintable() or not value or " " in value:
            raise KeyMissingError(f"the key from {where} is empty or holds blanks or line ends; copy it again")
        self._value = value

    def __repr__(self) -> str:
        return "Key(hidden)"

    def __reduce__(self):
        raise TypeError("a key is not written anywhere")

    def header(self) -> str:
        return f"Bearer {self._value}"

    def redact(self, text: str) -> str:
        """`text` without the key, for messages that quote a server; host names come in small letters."""
        return re.sub(re.escape(self._value), "(key)", text, flags=re.IGNORECASE)

    def is_in(self, url: str) -> bool:
        """Whether an address holds the key, written plainly or with %-escapes."""
        return self._value.lower() in unquote(url).lower()


def find_key(endpoint: Endpoint) -> Key | None:
    """The key for `endpoint`'s origin, or None where none is set."""
    for name in HOSTED.get(endpoint.origin, ()):
        if os.environ.get(name):
            return Key(os.environ[name].strip(), name)
    if os.environ.get(OWN_KEY) and endpoint.origin in _own_servers():
        return Key(os.environ[OWN_KEY].strip(), OWN_KEY)
    return _from_file(endpoint)


def how_to_set(endpoint: Endpoint) -> str:
    """The sentence for a user without a key."""
    names = HOSTED.get(endpoint.origin)
    if names:
        return f"set {names[0]} in the environment of ComfyUI, or put the key into {DEFAULT_FILE}"
    return f"set {OWN_KEY} and {OWN_SERVERS}={endpoint.origin}, or put the key into {DEFAULT_FILE}"


def _own_servers() -> set[str]:
    return {parse_server(url).origin for url in os.environ.get(OWN_SERVERS, "").split(",") if url.strip()}


def _from_file(endpoint: Endpoint) -> Key | None:
    """Look the origin up in the key file: a JSON object, origin -> key."""
    named = os.environ.get(KEY_FILE)
    path = Path(named) if named else DEFAULT_FILE.expanduser()
    if not named and not path.exists():
        return None
    try:
        keys = json.loads(_read_private(path))
    except (ValueError, OSError) as error:
        # Neither error's text is passed on: it may quote the file.
        raise KeyMissingError(f"the key file {path} cannot be used: {type(error).__name__}") from None
    if not isinstance(keys, dict) or not all(isinstance(value, str) for value in keys.values()):
        raise KeyMissingError(f'the key file {path} is not of the form {{"https://host:port": "key"}}')
    for origin, value in keys.items():
        if parse_server(origin).origin == endpoint.origin:
            return Key(value.strip(), str(path))
    return None


def _read_private(path: Path) -> str:
    """The file's text, if nobody but its owner, who is us, can read it."""
    if not hasattr(os, "getuid"):
        raise KeyMissingError(f"who can read {path} cannot be checked on this system; use an environment variable")
    with open(path, encoding="utf-8") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise KeyMissingError(f"others can read the key file {path}; run: chmod 600 '{path}'")
        return file.read()
