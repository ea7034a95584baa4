"""Figures: one PNG each, with alt text, whatever the text in them."""

import base64
import io
import warnings

import pytest
from PIL import Image

from llmnb import plots

FIGURES = {
    "lines": lambda t: plots.lines([1, 2, 4], {t: [3, 2, 1], "b": [1, 2, 3]}, "x", "y", t),
    "log lines": lambda t: plots.lines([1, 10], {t: [1, 100]}, "x", "y", t, log_x=True, log_y=True),
    "bars": lambda t: plots.bars({t: 1.0, "b": 2.0}, "x", t, low=[0.5, None], high=[1.5, None]),
    "distributions": lambda t: plots.distributions([t, "b"], {"T": [0.2, 0.8], t: [1, 0]}, "p", t),
    "heatmap": lambda t: plots.heatmap([[1, 2], [3, 4]], [t, "b"], ["c", "d"], t, "z"),
    "log heatmap": lambda t: plots.heatmap(
        [[1, 200]], [t], ["c", "d"], t, "z", log=True, outline=lambda value: value < 2
    ),
    "points": lambda t: plots.points(
        {t: (1, 0.5, 0.4, 0.6), "b": (10, 0.7, 0.7, 0.8)}, "x", "y", t, log_x=True, levels={t: 0.5}
    ),
    "signed bars": lambda t: plots.bars({t: -1.0, "b": 2.0}, "x", t, [-2, None], [1, None]),
    "intervals": lambda t: plots.intervals(
        {t: [(1, 0.5, 0.4, 0.6), (2, 0.7, 0.7, 0.8)], "b": [(1, 1, 0, 2)]}, "x", "y", t, "equal"
    ),
    "chance": lambda t: plots.bars({t: 1.0, "b": 2.0}, "x", t, chance=[0.5, 1.0]),
    "tokens": lambda t: plots.tokens({t: ["a", t, "你好"]}, t),
}
TITLES = {
    "symbols": "Costs $5 and $x_{$ or \\frac",
    "html": "<script>alert(1)</script>",
    "long": "long " * 60,
    "scripts": "你好 ☃",
}


@pytest.mark.parametrize("title", TITLES.values(), ids=TITLES)
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_any_text(name, title):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data, metadata = FIGURES[name](title)._repr_mimebundle_()
    image = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    image.load()
    assert image.width > 1000 and len(data["image/png"]) < 90_000
    alt = metadata["image/png"]["alt"]
    assert title in alt and len(alt) > len(title) and data["text/plain"] == alt


def test_the_same_figure_has_the_same_bytes_and_its_alt_text_the_values():
    one, two = (plots.bars({"a": 1.5, "b": 2.25}, "x", "t") for _ in range(2))
    assert one._repr_mimebundle_() == two._repr_mimebundle_()
    assert "a 1.50; b 2.25" in one.alt


def test_nothing_to_draw_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.bars({}, "x", "t")
    with pytest.raises(ValueError, match=r"is \(1, 2\), its labels say \(2, 2\)"):
        plots.heatmap([[1, 2]], ["a", "b"], ["c", "d"], "t", "z")


def test_a_long_label_of_the_upright_axis_stays_in_the_picture():
    label = "stored for the backward pass, beside the queries, keys and values (MiB)"
    figure = plots.lines([1, 2], {"a": [1, 2]}, "x", label, "A title")
    figure.draw_without_rendering()
    box = figure.axes[0].yaxis.label.get_window_extent()
    assert box.y0 > 0 and box.y1 < figure._suptitle.get_window_extent().y0
