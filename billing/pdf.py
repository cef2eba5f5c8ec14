"""Lines of text as a PDF document, in the one font that every reader brings. Pure; all that an invoice needs.

Source: ISO 32000-1:2008 (PDF 1.4 subset: objects, pages, standard 14 fonts), read 2026-11.
"""

from collections.abc import Sequence
from typing import Final

WIDTH: Final = 96  # Characters in a line.
LINES: Final = 66  # On a page.
_A4: Final = "0 0 595 842"  # Points of 1/72 inch.
_LEFT, _TOP, _SIZE, _LEADING = 40, 800, 9, 11.5


def document(lines: Sequence[str], *, title: str) -> bytes:
    """Courier 9 on A4; what is too long for a line is cut into several. The first line is printed larger."""
    rows = [row[at : at + WIDTH] for row in lines for at in range(0, max(1, len(row)), WIDTH)]
    pages = [rows[at : at + LINES] for at in range(0, max(1, len(rows)), LINES)]
    # 1 catalogue, 2 pages, 3 font, 4 information; then for each page itself and its content.
    kids = " ".join(f"{5 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Courier /Encoding /WinAnsiEncoding >>",
        b"<< /Title " + _string(title) + b" /Producer (Farebox) >>",
    ]
    for number, page in enumerate(pages):
        content = _content(page, first=number == 0)
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [{_A4}] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {6 + 2 * number} 0 R >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    return _file(objects)


def _content(rows: Sequence[str], *, first: bool) -> bytes:
    parts = [f"BT /F1 {_SIZE} Tf {_LEADING} TL {_LEFT} {_TOP} Td".encode()]
    for number, row in enumerate(rows):
        large = first and number == 0
        text = _string(row) + b" Tj T*"
        parts.append(b"/F1 14 Tf %s /F1 %d Tf" % (text, _SIZE) if large else text)
    return b"\n".join([*parts, b"ET"])


def _string(text: str) -> bytes:
    data = "".join(c if c.isprintable() else " " for c in text).encode("cp1252", "replace")
    return b"(" + data.replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)") + b")"


def _file(objects: Sequence[bytes]) -> bytes:
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    # Each entry has exactly 20 bytes.
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R /Info 4 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)
