"""Answers of engines -> a JSON object or the one fitting error, with the server's own reason in it."""

import json
import math
import re
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from .addresses import Endpoint
from .api_keys import Key, how_to_set
from .errors import (
    AccountError,
    BrokenResponseError,
    BusyError,
    ContentFilteredError,
    RefusedError,
    RemoteError,
    ServerFailedError,
    UnavailableError,
    WarmingUpError,
)
from .http import Response

REASON_LENGTH = 300
WARM_UP_PAUSE = 2.0  # seconds between two looks at a server that warms up
MAX_WAIT = 60.0  # seconds of a Retry-After that are honoured
FILTER_CODES = {"1301", "content_filter", "content_policy_violation", "moderation_blocked"}
BUSY_CODES = {"1302", "1303", "1305"}  # z.ai's other codes under 429 are about balance, quota and plan


def read_json(response: Response, endpoint: Endpoint, key: Key | None) -> dict:
    """The object in an answer whose status is fine; any other answer is raised."""
    if not 200 <= response.status < 300:
        raise failure(response, endpoint, key)
    try:
        found = json.loads(response.body)
    except (ValueError, RecursionError):
        kind = redact(response.headers.get("Content-Type") or "something", key)
        raise BrokenResponseError(
            f"{endpoint} answered with {kind} that is not JSON; is this the address of an engine's API?"
        ) from None
    if not isinstance(found, dict):
        raise BrokenResponseError(f"{endpoint} answered with JSON that is no object")
    if found.get("error") or found.get("object") == "error":  # some gateways report errors under status 200
        raise _refusal(response, endpoint, *_reason(found, key))
    return found


def failure(response: Response, endpoint: Endpoint, key: Key | None) -> RemoteError:
    """The error for a status other than 2xx."""
    try:
        code, reason = _reason(json.loads(response.body), key)
    except (ValueError, RecursionError):
        code, reason = "", _plain(response, key)
    said = f"{endpoint} answered {response.status}" + (f": {reason}" if reason else "")
    if code in FILTER_CODES:
        return ContentFilteredError(f"{endpoint} withheld the image, its content filter says: {reason}")
    if response.status in (401, 403):
        return AccountError(f"{said}; check the key: {how_to_set(endpoint)}")
    wait = retry_after(response)
    if (response.status == 429 and (not code.startswith("1") or code in BUSY_CODES)) or (
        response.status == 503 and wait
    ):
        error = BusyError(said)
        error.retry_after = wait
        return error
    if response.status == 429:
        return AccountError(said)
    if response.status == 503:
        return UnavailableError(said)
    if response.status >= 500 or response.status == 408:
        return ServerFailedError(said)
    return RefusedError(said)


def health_failure(response: Response, endpoint: Endpoint, key: Key | None) -> RemoteError:
    """The error for a health page that is not well: SGLang's 503 is empty while it warms up, a dead engine's is not."""
    if response.status == 503 and not response.body.strip():
        error = WarmingUpError(f"{endpoint} is warming up")
        error.retry_after = WARM_UP_PAUSE
        return error
    return failure(response, endpoint, key)


def _plain(response: Response, key: Key | None) -> str:
    """The reason of a server that gives it as plain text."""
    if not (response.headers.get("Content-Type") or "").startswith("text/plain"):
        return ""
    return redact(response.body.decode("utf-8", "replace"), key)


def _refusal(response: Response, endpoint: Endpoint, code: str, reason: str) -> RemoteError:
    if code in FILTER_CODES:
        return ContentFilteredError(f"{endpoint} withheld the image, its content filter says: {reason}")
    return RefusedError(f"{endpoint} answered {response.status} with an error: {reason}")


def _reason(found: object, key: Key | None) -> tuple[str, str]:
    """(code, reason) out of the shapes engines use: error.message, message, detail as text or as FastAPI's list."""
    if not isinstance(found, dict):
        return "", ""
    error = found.get("error")
    code = ""
    if isinstance(error, dict):
        code, said = str(error.get("code") or ""), error.get("message")
    else:
        said = error or found.get("message") or found.get("detail")
    if isinstance(said, list):
        said = "; ".join(str(item.get("msg")) for item in said if isinstance(item, dict))
    return code, redact(str(said or ""), key)


def redact(text: str, key: Key | None) -> str:
    """A server's words as they may be shown: one line of bounded length, without the key."""
    text = "".join(c for c in re.sub(r"\s", " ", text) if c.isprintable())  # what does not show could part the key
    text = re.sub(r" +", " ", key.redact(text) if key else text).strip()
    return text if len(text) <= REASON_LENGTH else text[:REASON_LENGTH] + "..."


def retry_after(response: Response) -> float:
    """Seconds to wait, from the header's number or date; 0 without one."""
    value = (response.headers.get("Retry-After") or "").strip()
    try:
        seconds = float(value) if value[:1].isdigit() else _until(value)
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), MAX_WAIT) if math.isfinite(seconds) else 0.0


def _until(date: str) -> float:
    return (parsedate_to_datetime(date) - datetime.now(timezone.utc)).total_seconds()
