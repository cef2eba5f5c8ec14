"""Images of a conversation: from what clients send to the tiles that a model sees, as its processor makes them.

An image is opened for its head alone first: its size says how many tokens it takes and how much memory, so that what is
too large is refused before a pixel is decoded. Nothing is fetched: who could name an address here could have the
engine knock at any door of its network.
Source: transformers' processing_smolvlm.py and image_processing_pil_smolvlm.py, read 2026-11.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
from msgspec import Struct
from PIL import Image, ImageOps, UnidentifiedImageError

from local_backend.errors import ContextLengthExceeded, InvalidRequest, QueueFull, Unsupported
from local_backend.messages import Images
from local_backend.model_config import ModelConfig
from local_backend.vision_config import VisionConfig

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MAX_PIXELS = 50_000_000  # of an image as it comes; decoded it takes about seven bytes each
MAX_EDGE = 4096  # transformers scales nothing beyond it
ORIENTATION = 0x0112  # EXIF: how the camera was held
PLACE, AROUND, WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"
DETAILS = (None, "auto", "low", "high")


class Picture(Struct, frozen=True):
    """An image as it was sent, its size known. rows, cols: its tiles, beside one of the whole; 0: that one alone."""

    data: bytes
    rows: int
    cols: int
    param: str

    @property
    def tiles(self) -> int:
        """How many the model sees."""
        return self.rows * self.cols + 1


def picture_of(part: dict[str, Any], config: VisionConfig, param: str) -> Picture:
    """A content part of type image_url. Raises InvalidRequest or Unsupported naming the image and what is wrong."""
    given = part.get("image_url")
    url, detail = (given.get("url"), given.get("detail")) if isinstance(given, dict) else (given, None)
    if not isinstance(url, str):
        raise InvalidRequest('an image is {"type": "image_url", "image_url": {"url": "data:..."}}', param=param)
    if detail not in DETAILS:
        raise InvalidRequest("detail is auto, low or high", param=f"{param}.image_url.detail")
    param += ".image_url.url"
    data = _data_of(url, param)
    with _reading(param), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _too_large(f"it has {width} x {height} pixels", param)
        if _orientation(image) >= 5:
            width, height = height, width
    rows, cols = (0, 0) if detail == "low" else grid(height, width, config)
    return Picture(data, rows, cols, param)


class Album:
    """The images of a conversation as they are found in it, no more than the model's context has room for."""

    def __init__(self, config: ModelConfig) -> None:
        self.pictures: list[Picture] = []
        self._config, self._tokens = config, 0

    @property
    def is_open(self) -> bool:
        """True if the model takes images."""
        return self._config.vision is not None

    def add(self, part: dict[str, Any], param: str) -> None:
        """Raises as `picture_of` does, and ContextLengthExceeded."""
        vision, most = self._config.vision, self._config.max_position
        assert vision is not None
        picture = picture_of(part, vision, param)
        self.pictures.append(picture)
        self._tokens += picture.tiles * vision.tile_tokens
        if self._tokens >= most:
            # Before the others are opened: a body has room for a hundred thousand small ones.
            raise ContextLengthExceeded(self._tokens, most, param)


def expanded(prompt: str, pictures: list[Picture], config: VisionConfig) -> str:
    """The prompt with each image's place as wide as its tokens. Raises InvalidRequest if texts mark places, too."""
    before, *behind = prompt.split(PLACE)
    if len(behind) != len(pictures):
        raise InvalidRequest(
            f"{len(pictures)} images were sent and the prompt has places for {len(behind)}: {PLACE!r} in a text is "
            "what this model reads as one",
            param="messages",
        )
    seen = PLACE * config.tile_tokens
    pieces = [before]
    for picture, text in zip(pictures, behind, strict=True):
        for row in range(picture.rows):
            pieces += [f"{AROUND}<row_{row + 1}_col_{col + 1}>{seen}" for col in range(picture.cols)]
            pieces.append("\n")
        pieces += ["\n" if picture.rows else "", AROUND, WHOLE, seen, AROUND, text]
    return "".join(pieces)


def images_of(pictures: list[Picture], prompt: list[int], config: VisionConfig) -> Images:
    """What the core is sent. Decodes and resizes: a thread's work. Raises InvalidRequest naming a broken image."""
    places = [at for at, token in enumerate(prompt) if token == config.image_token_id]
    starts, span = places[:: config.tile_tokens], config.tile_tokens - 1
    tiles = [tiles_of(picture, config) for picture in pictures]
    digests = [blake2b(b"".join(own), digest_size=16).digest() for own in tiles for _ in own]
    if len(places) != len(digests) * config.tile_tokens or places[span :: span + 1] != [at + span for at in starts]:
        raise InvalidRequest("a text breaks into the places of images", param="messages")
    return Images(starts, config.tile_tokens, digests, [tile for own in tiles for tile in own])


def tiles_of(picture: Picture, config: VisionConfig) -> list[bytes]:
    """Pixels (3, tile_size, tile_size) of each tile, row by row, the whole image last. Raises InvalidRequest."""
    size = config.tile_size
    with _reading(picture.param), Image.open(io.BytesIO(picture.data), formats=FORMATS) as opened:
        image = opened if _orientation(opened) == 1 else ImageOps.exif_transpose(opened)
        image = _as_rgb(image)
        filter_ = Image.Resampling(config.resample)
        height, width = fitted(image.height, image.width, config.longest_edge)
        image = image.resize((width, height), filter_)
        if picture.rows:
            image = image.resize((picture.cols * size, picture.rows * size), filter_)
        boxes = [
            (col * size, row * size, (col + 1) * size, (row + 1) * size)
            for row in range(picture.rows)
            for col in range(picture.cols)
        ]
        tiles = [*map(image.crop, boxes), image.resize((size, size), filter_)]
        return [np.asarray(tile).transpose(2, 0, 1).tobytes() for tile in tiles]


def grid(height: int, width: int, config: VisionConfig) -> tuple[int, int]:
    """Rows and columns of tiles that an image is cut into; 0, 0 if it is not cut."""
    if not config.splits:
        return 0, 0
    height, width = fitted(height, width, config.longest_edge)
    size, aspect = config.tile_size, width / height
    if width >= height:
        cols = math.ceil(width / size)
        rows = math.ceil(int(cols * size / aspect) / size)
    else:
        rows = math.ceil(height / size)
        cols = math.ceil(int(rows * size * aspect) / size)
    return (rows, cols) if rows > 1 or cols > 1 else (0, 0)


def fitted(height: int, width: int, longest: int) -> tuple[int, int]:
    """Sides of the image whose longer one is `longest`; the other is made even. Small images grow."""
    aspect = width / height
    if width >= height:
        height, width = int(longest / aspect), longest
        height += height % 2
    else:
        height, width = longest, int(longest * aspect)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    aspect = width / height
    if width >= height and width > MAX_EDGE:
        height, width = int(MAX_EDGE / aspect), MAX_EDGE
    elif height > MAX_EDGE:
        height, width = MAX_EDGE, int(MAX_EDGE * aspect)
    return max(height, 1), max(width, 1)


class Room:
    """Memory that the images of open requests may take."""

    def __init__(self, bound: int) -> None:
        self.bound, self.taken = bound, 0

    @contextmanager
    def take(self, wanted: int) -> Iterator[None]:
        """Held for the length of a block. Raises QueueFull, or InvalidRequest if it can never be had."""
        if wanted > self.bound:
            raise _too_large(f"the images of this request take {wanted} bytes", "messages", f"{self.bound} bytes")
        if self.taken + wanted > self.bound:
            raise QueueFull(
                f"images of open requests take {self.taken} bytes, of {self.bound} at most; try again later"
            )
        self.taken += wanted
        try:
            yield
        finally:
            self.taken -= wanted


def bytes_of(pictures: list[Picture], config: VisionConfig, hidden: int) -> int:
    """What the images take: as they were sent, and in the core their pixels or, later, float32 tokens of the model."""
    each = max(config.tile_bytes, 4 * config.tile_tokens * hidden)
    return sum(len(picture.data) + picture.tiles * each for picture in pictures)


def _data_of(url: str, param: str) -> bytes:
    scheme, _, rest = url.partition(":")
    if scheme.lower() in ("http", "https"):
        raise Unsupported(
            "images are not fetched here: send the image itself, as data:image/png;base64,... (PNG, JPEG, WebP or GIF)",
            param=param,
        )
    head, comma, body = rest.partition(",")
    if scheme.lower() != "data" or not comma or not head.lower().endswith(";base64"):
        raise InvalidRequest("an image's url is data:image/png;base64,...", param=param, code="invalid_image")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"the image is not base64: {error}", param=param, code="invalid_image") from None


@contextmanager
def _reading(param: str) -> Iterator[None]:
    """Whatever is wrong with a file is the client's fault, and names the image."""
    try:
        yield
    except InvalidRequest:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(str(error), param) from None
    except Exception as error:  # decoders raise what they please over broken files
        why = "it is none of PNG, JPEG, WebP and GIF" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InvalidRequest(f"the image cannot be read: {why}", param=param, code="invalid_image") from error


def _too_large(what: str, param: str, most: str = f"{MAX_PIXELS} pixels") -> InvalidRequest:
    return InvalidRequest(f"{what}; at most {most} are taken", param=param, code="image_too_large")


def _orientation(image: Image.Image) -> int:
    """As the head says; what stands behind the pixels is not looked for, since that would decode them."""
    found = image.getexif().get(ORIENTATION, 1) if "exif" in image.info else 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _as_rgb(image: Image.Image) -> Image.Image:
    """The first frame without transparency: what lies under it is white."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")
