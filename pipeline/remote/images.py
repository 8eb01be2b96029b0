"""Pictures from servers: nothing of an answer is used before it is known to be a picture of a bearable size."""

import base64
import io

from PIL import Image

from ..images import BROKEN, to_rgb
from .addresses import Endpoint
from .errors import BrokenAnswerError
from .request import PictureRequest

FORMATS = ("PNG", "JPEG", "WEBP")
SIDE_LIMIT = 4096  # px
REFERENCE_SIDE = 4096  # px; the model's own limit is half of that
ANSWER_ROOM = 1 << 20
LEAST_PIXELS = 2048 * 2048  # a server may draw larger than asked


def answer_limit(request: PictureRequest) -> int:
    """Bytes an answer may have: an incompressible PNG of the size asked for, or of 2048x2048, in base64."""
    return ANSWER_ROOM + max(request.width * request.height, LEAST_PIXELS) * 3 * 3 // 2


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
            if max(picture.size) > SIDE_LIMIT:
                raise _wrong_size(picture, request, endpoint)
            picture.load()
            found = to_rgb(picture)
    except Image.DecompressionBombError:
        raise BrokenAnswerError(f"{endpoint} sent a picture that is too large to unpack") from None
    except BROKEN as error:
        raise BrokenAnswerError(
            f"{endpoint} sent {len(data):,} bytes that are no readable {', '.join(FORMATS)} picture "
            f"({type(error).__name__})"
        ) from None
    if exact and found.size != (request.width, request.height):
        raise _wrong_size(found, request, endpoint)
    return found


def _wrong_size(picture: Image.Image, request: PictureRequest, endpoint: Endpoint) -> BrokenAnswerError:
    width, height = picture.size
    return BrokenAnswerError(f"{endpoint} sent a picture of {width}x{height} px where {request.size} was asked for")


def to_png(picture: Image.Image) -> bytes:
    """A reference as it is sent: RGB, without metadata, and no larger than is of use."""
    buffer = io.BytesIO()
    plain = to_rgb(picture)
    plain.info.clear()
    plain.thumbnail((REFERENCE_SIDE, REFERENCE_SIDE), Image.Resampling.LANCZOS)
    plain.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
