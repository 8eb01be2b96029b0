"""Pictures from servers: nothing of an answer is used before it is known to be a picture of a bearable size."""

import base64
import io

from PIL import Image

from ..images import to_rgb
from .errors import BrokenAnswerError
from .request import PictureRequest
from .safety import Endpoint

FORMATS = ("PNG", "JPEG", "WEBP")
SIDE_LIMIT = 4096  # px
ANSWER_ROOM = 1 << 20


def answer_limit(request: PictureRequest) -> int:
    """Bytes an answer may have: an incompressible PNG of the size asked for, in base64, and some room."""
    return ANSWER_ROOM + request.width * request.height * 3 * 3 // 2


def picture_bytes(text: object, endpoint: Endpoint) -> bytes:
    """Base64 -> the file in it."""
    if not isinstance(text, str):
        raise BrokenAnswerError(f"{endpoint} sent {type(text).__name__} where base64 was promised")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise BrokenAnswerError(f"{endpoint} sent a picture whose base64 is broken") from None


def decode(data: bytes, request: PictureRequest, endpoint: Endpoint, exact: bool) -> Image.Image:
    """PNG, JPEG or WebP file -> RGB picture; its header is judged before its pixels are unpacked.

    `exact`: no other size than the one asked for is taken.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check_size(picture, request, endpoint, exact)
            picture.load()
            return to_rgb(picture)
    except Image.DecompressionBombError:
        raise BrokenAnswerError(f"{endpoint} sent a picture that is too large to unpack") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BrokenAnswerError(
            f"{endpoint} sent {len(data):,} bytes that are no readable {', '.join(FORMATS)} picture "
            f"({type(error).__name__})"
        ) from None


def _check_size(picture: Image.Image, request: PictureRequest, endpoint: Endpoint, exact: bool) -> None:
    width, height = picture.size
    if max(width, height) > SIDE_LIMIT or (exact and (width, height) != (request.width, request.height)):
        raise BrokenAnswerError(f"{endpoint} sent a picture of {width}x{height} px where {request.size} was asked for")


def to_png(picture: Image.Image) -> bytes:
    """A reference as it is sent: RGB, without metadata."""
    buffer = io.BytesIO()
    plain = to_rgb(picture)
    plain.info.clear()
    plain.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
