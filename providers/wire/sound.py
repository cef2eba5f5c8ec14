"""How long a sound lasts, from its bytes: exact where the container says it, else at the least bit rate in use.

Source: RIFF/WAVE, FLAC (RFC 9639), Ogg (RFC 3533) with Opus and Vorbis, ISO 14496-12 `mvhd`, MPEG audio frame headers,
read 2026-11."""

from __future__ import annotations

import re
import struct

# Speech is hardly ever coded below this; what we cannot read is taken to be.
LEAST_BYTES_PER_S = 1_500  # 12 kbit/s
_KBPS_V1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
_KBPS_V2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
_MP3_SYNC = re.compile(rb"\xff[\xfa\xfb\xf2\xf3\xe2\xe3]")
PCM_BYTES_PER_S = 48_000
"""OpenAI's `pcm`: 24 kHz, 16 bit, one channel, no head."""


def seconds(data: bytes, size: int | None = None) -> tuple[float, bool]:
    """Returns: how long, and whether that is sure; an unsure one is rather too long.

    data: the file, or its head where `size` tells the whole's length in bytes."""
    size = len(data) if size is None else size
    for read in (_wav, _flac, _ogg, _mp4):
        found = read(data, size)
        if found is not None and found >= 0:
            return found, True
    if (rate := _mp3_rate(data)) is not None:
        return size / rate, False
    return size / LEAST_BYTES_PER_S, False


def _wav(data: bytes, size: int) -> float | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    at = data.find(b"fmt ", 12, 4096)
    if at < 0 or len(data) < at + 20:
        return None
    (rate,) = struct.unpack_from("<I", data, at + 16)
    return (size - at) / rate if rate else None  # its own length field is wrong in streams


def _flac(data: bytes, size: int) -> float | None:
    if data[:4] != b"fLaC" or len(data) < 26:
        return None
    packed = int.from_bytes(data[18:26], "big")
    rate, samples = packed >> 44, packed & (1 << 36) - 1
    return samples / rate if rate and samples else None


def _ogg(data: bytes, size: int) -> float | None:
    if data[:4] != b"OggS" or size != len(data):
        return None
    last = data.rfind(b"OggS")
    if len(data) < last + 14:
        return None
    (granule,) = struct.unpack_from("<q", data, last + 6)
    at = data.find(b"\x01vorbis", 0, 512)
    rate = struct.unpack_from("<I", data, at + 12)[0] if at >= 0 and len(data) >= at + 16 else 48_000
    return granule / rate if granule >= 0 and rate else None


def _mp4(data: bytes, size: int) -> float | None:
    if data[4:8] != b"ftyp":
        return None
    at = data.find(b"mvhd")
    if at < 0 or len(data) < at + 36:
        return None
    if data[at + 4] == 1:
        scale, length = struct.unpack_from(">IQ", data, at + 24)
    else:
        scale, length = struct.unpack_from(">II", data, at + 16)
    return length / scale if scale and length else None


def _mp3_rate(data: bytes) -> float | None:
    """Bytes a second by the first frame: of a variable rate this may be far off, in either direction."""
    at = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        at = 10 + (data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9])
    found = _MP3_SYNC.search(data, at, at + 65_536)
    if found is None or len(data) < found.start() + 3:
        return None
    newer = data[found.start() + 1] >> 3 & 3 == 3
    kbps = (_KBPS_V1 if newer else _KBPS_V2)[data[found.start() + 2] >> 4]
    return kbps * 125 or None
