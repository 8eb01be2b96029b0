"""Images from servers: nothing of a response is used before it is known to be an image of a supported size."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from ..images import BROKEN, to_rgb
from .addresses import Endpoint
from .errors import BrokenResponseError
from .request import ImageRequest

FORMATS = ("PNG", "JPEG", "WEBP")
ASKED_FORMAT = "PNG"
SIDE_LIMIT = 4096  # px
REFERENCE_SIDE = 4096  # px; the model's own limit is half of that


@dataclass(frozen=True)
class ReceivedImage:
    """An RGB image and the format its file had, "PNG" unless the server lost something."""

    image: Image.Image
    format: str


def image_bytes(text: object, endpoint: Endpoint) -> bytes:
    """Base64 -> the file in it."""
    if not isinstance(text, str):
        raise BrokenResponseError(f"{endpoint} sent {type(text).__name__} where base64 was promised")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise BrokenResponseError(f"{endpoint} sent an image whose base64 is broken") from None


def decode(data: bytes, request: ImageRequest, endpoint: Endpoint, exact: bool) -> ReceivedImage:
    """PNG, JPEG or WebP file -> RGB image; its header is judged before its pixels are unpacked.

    `exact`: no other size than the one asked for is taken.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            if max(file.size) > SIDE_LIMIT:
                raise _wrong_size(file, request, endpoint)
            file.load()
            received = ReceivedImage(to_rgb(file), file.format)
    except Image.DecompressionBombError:
        raise BrokenResponseError(f"{endpoint} sent an image that is too large to unpack") from None
    except BROKEN as error:
        raise BrokenResponseError(
            f"{endpoint} sent {len(data):,} bytes that are no readable {', '.join(FORMATS)} image "
            f"({type(error).__name__})"
        ) from None
    if exact and received.image.size != (request.width, request.height):
        raise _wrong_size(received.image, request, endpoint)
    return received


def _wrong_size(image: Image.Image, request: ImageRequest, endpoint: Endpoint) -> BrokenResponseError:
    width, height = image.size
    return BrokenResponseError(f"{endpoint} sent an image of {width}x{height} px where {request.size} was asked for")


def to_png(image: Image.Image) -> bytes:
    """A reference as it is sent: RGB, without metadata, and no larger than is of use."""
    buffer = io.BytesIO()
    plain = to_rgb(image)
    plain.info.clear()
    plain.thumbnail((REFERENCE_SIDE, REFERENCE_SIDE), Image.Resampling.LANCZOS)
    plain.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
