"""What all figures share: one style, one palette, alt text."""

import contextlib
import functools
import io
import textwrap
import warnings
from collections.abc import Iterator

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as _Figure
from matplotlib.font_manager import get_font_names
from matplotlib.patches import Rectangle

# Okabe and Ito's palette, darkened where it would be too pale on white.
COLOURS = ("#0072b2", "#d55e00", "#00795c", "#b5508c", "#8a6d00", "#3a93c8", "#555555")
_DPI = 110
_STYLE = {
    "font.size": 11,
    "text.parse_math": False,  # a $ in a model's or reader's text is a dollar
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@functools.cache
def style() -> dict:
    """The matplotlib settings, with those of our fonts that are installed here."""
    fonts = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "SimHei")
    installed = set(get_font_names())
    return _STYLE | {"font.sans-serif": [name for name in fonts if name in installed]}


class Figure(_Figure):
    """A matplotlib figure that shows itself in a notebook as one PNG, with its alt text."""

    alt = ""

    def _repr_mimebundle_(self, include=None, exclude=None):
        buffer = io.BytesIO()
        with rc_context(style()), warnings.catch_warnings():
            # A character that no font here has is drawn as a box; the alt text still says it.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            self.savefig(buffer, format="png", dpi=1.45 * _DPI, metadata={"Software": None})
        width = round(self.get_figwidth() * _DPI)
        data = {"image/png": _small(buffer), "text/plain": self.alt}
        return data, {"image/png": {"width": width, "alt": self.alt}}


def _small(buffer: io.BytesIO) -> str:
    """The PNG with a palette of 64 colours: a third of the size, no visible difference."""
    import base64

    from PIL import Image

    small = io.BytesIO()
    image = Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True)
    return base64.b64encode(small.getvalue()).decode("ascii")


@contextlib.contextmanager
def drawing(
    title: str, alt: str, width: float = 7.6, height: float = 4.0, shape=(1, 1), grid: bool = True
) -> Iterator[tuple[Figure, np.ndarray]]:
    """An empty figure with its title and alt text, and its axes as a flat array.

    shape: rows and columns of axes; grid: whether they have lines behind what is drawn. Everything
    is drawn inside the `with`, where our style holds.
    """
    wrapped = textwrap.fill(title, round(width * 9))  # bold letters: nine an inch
    height += 0.2 * wrapped.count("\n")
    with rc_context(style() | {"axes.grid": grid}):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.alt = f"{title}. {alt}" if alt else title
        axes = figure.subplots(*shape, squeeze=False).ravel()
        figure.suptitle(wrapped, x=0.01, ha="left", fontweight="bold", fontsize=12.5)
        yield figure, axes


def box(left: float, middle: float, width: float, colour: str, filled: bool = True) -> Rectangle:
    """A box of height 0.72 around the line y = middle, tinted or only framed."""
    fill = colour + "33" if filled else "none"
    return Rectangle(
        (left, middle - 0.36), width, 0.72, facecolor=fill, edgecolor=colour, lw=1 if filled else 2
    )


def label_of(text: str) -> str:
    """The text, cut after 39 characters; the alt text has it whole."""
    return text if len(text) <= 40 else text[:39] + "…"


def need(values, name: str) -> None:
    if not values:
        raise ValueError(f"There is nothing to draw: {name} is empty.")
