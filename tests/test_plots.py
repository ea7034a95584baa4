"""Figures: one PNG each, with alt text, whatever the text in them."""

import base64
import io
import warnings

import pytest
from matplotlib.colors import to_rgb
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
    "coloured text": lambda t: plots.coloured_text(
        ["a", f" {t}", "⏎", " 你好"], [0, 3, 1, 20], t, "bits", top=15
    ),
    "chance": lambda t: plots.bars({t: 1.0, "b": 2.0}, "x", t, chance=[0.5, 1.0]),
    "tokens": lambda t: plots.tokens({t: ["a", t, "你好"]}, t),
    "stacks": lambda t: plots.stacks({"a": ["b", "*c", "*d"], "e": ["f"]}, [(0, 0, 0, 2)], t),
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


def test_a_residual_connection_goes_around_the_boxes_between_its_ends():
    figure = plots.stacks({"one": ["input", "*layer", "*add"], "two": ["b"]}, [(0, 0, 0, 2)], "t")
    (line,) = figure.axes[0].lines
    assert line.get_ydata().tolist() == [0.5, 0.5, 2]  # from above the input to beside the sum
    assert 0.41 < line.get_xdata()[-1] < 0.5  # outside its column's boxes, and before the next


def test_a_surprising_token_stands_on_a_darker_ground_and_lines_end_between_words():
    pieces = [" word", "play"] * 14 + ["⏎", "last"]  # seven words fill a line, and more
    values = [0.0] * 29 + [15.0]
    figure = plots.coloured_text(pieces, values, "A text", "bits", top=15)
    grounds = [patch for patch in figure.axes[0].patches if patch.get_height() < 1]
    assert len({patch.get_facecolor() for patch in grounds[:-1]}) == 1
    assert grounds[-1].get_facecolor()[:3] == pytest.approx(to_rgb(plots.COLOURS[1]), abs=0.01)
    line_starts = [p for p, patch in zip(pieces, grounds, strict=True) if patch.get_x() == 0]
    assert line_starts == [" word", " word", "last"]
    assert "Highest bits: last 15.0" in figure.alt


def test_a_line_joins_the_values_that_were_measured_and_only_they_are_described():
    series = {"a": [float("nan"), 5, float("nan"), 6], "b": [1, 2, 3, 4]}
    figure = plots.lines([1, 2, 3, 4], series, "x", "y", "title")
    assert "a goes from 5 to 6; b goes from 1 to 4" in figure.alt
    (axes,) = figure.axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [[2, 4], [1, 2, 3, 4]]


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
