"""Labelled images in rows and columns."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

_MARGIN = 8
_LABEL = 18


def sheet(rows: list[list[tuple[str, Image.Image]]]) -> Image.Image:
    """Return labelled pictures of one size in rows and columns."""
    width, height = rows[0][0][1].size
    step_x, step_y = width + _MARGIN, height + _MARGIN + _LABEL
    page = Image.new("RGB", (len(rows[0]) * step_x + _MARGIN, len(rows) * step_y + _MARGIN), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for row, cells in enumerate(rows):
        for column, (label, image) in enumerate(cells):
            x, y = _MARGIN + column * step_x, _MARGIN + row * step_y
            draw.text((x, y), label, fill="black", font=font)
            page.paste(image, (x, y + _LABEL))
    return page
