"""What can go wrong between us and a serving engine, and what may be done about it."""

from ..errors import GlmImageError


class RemoteError(GlmImageError):
    """A request failed. The message never holds a key.

    retry: asking again, here or at another server, may help. maybe_done: the server may have made (and, if hosted,
    charged) the image already. stops_batch: every further request would fail the same way. begun: the server had the
    whole request, and may go on with it.
    """

    retry = False
    maybe_done = False
    stops_batch = False
    begun = False
    retry_after = 0.0  # seconds the server asks to be left alone


class UnsafeAddressError(RemoteError):
    """The address, or what its name resolves to, is one we never talk to."""

    stops_batch = True


class KeyMissingError(RemoteError):
    """No key, or a key kept where others can read it."""

    stops_batch = True


class UnreachableError(RemoteError):
    """No connection: nothing was sent."""

    retry = True


class ServerTimeoutError(RemoteError):
    """The time for one image is over."""

    retry = True
    maybe_done = True


class BrokenResponseError(RemoteError):
    """An answer came that is no valid image: cut short, not JSON, too large, not decodable."""

    retry = True
    maybe_done = True


class UnavailableError(RemoteError):
    """The server cannot work now, or its engine died: 503. What it had in hand is lost."""

    retry = True


class BusyError(UnavailableError):
    """The server asks for patience: 429, or 503 with a time to come back. Waiting for one's turn is no failed try."""


class WarmingUpError(BusyError):
    """The server is up and its engine not ready yet: 503 of the health page, without a word."""


class ServerFailedError(RemoteError):
    """The server broke while it worked: 5xx."""

    retry = True
    maybe_done = True


class RepeatableFailureError(RemoteError):
    """The engine fails on this very request, seed included: asking again gives the same error."""


class RefusedError(RemoteError):
    """The server understood and said no; asking again gives the same answer."""


class AccountError(RefusedError):
    """The key is not accepted, the account is empty or its quota used up."""

    stops_batch = True


class ContentFilteredError(RefusedError):
    """The hosted service's content filter withheld the image."""


class CancelledError(RemoteError):
    """The caller gave up; the connection is closed."""
