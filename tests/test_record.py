"""A recorded metric: one tidy line for a reader, and the data for a report."""

import pytest

from llmnb.plots import bars
from llmnb.record import ANSWER_MIME, METRIC_MIME, benchmark, record


def test_outside_a_notebook_it_prints_a_line(capsys):
    record("accuracy", 0.84, low=0.82, high=0.86)
    beside = ("always the majority", 0.5)
    record("f1", 0.5, label="F1 of  full fine-tuning", baseline=beside)
    record("loss", 2.0, "lower", "nats")
    record.answer("  It is **good**. ")
    assert capsys.readouterr().out.splitlines() == [
        "accuracy = 0.84  [0.82, 0.86]  (higher is better)",
        "F1 of full fine-tuning = 0.5  (higher is better; always the majority: 0.5)",
        "loss = 2 nats  (lower is better)",
        "It is **good**.",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "<b>", "value": 1}, "name"),
        ({"name": "x", "value": float("nan")}, "not finite"),
        ({"name": "x", "value": None}, "no number"),
        ({"name": "x", "value": 1, "better": "bigger"}, "higher"),
        ({"name": "x", "value": 1, "low": 0}, "both ends"),
        ({"name": "x", "value": 1, "low": 2, "high": 3}, "outside"),
        ({"name": "x", "value": 1, "label": " "}, "label is a text"),
        ({"name": "x", "value": 1, "label": "l" * 121}, "at most 120"),
        ({"name": "x", "value": 1, "baseline": 0.5}, "a label and a number"),
        ({"name": "x", "value": 1, "baseline": ("b", float("inf"))}, "not finite"),
    ],
)
def test_what_no_report_could_compare_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        record(**arguments)


def test_an_answer_is_a_short_text_with_a_figure_of_ours():
    for text in ("  ", "a" * 1501):
        with pytest.raises(ValueError, match="1 to 1500 characters"):
            record.answer(text)
    with pytest.raises(TypeError, match=r"llmnb\.plots"):
        record.answer("Yes.", figure="curve")


def outputs_of(source):
    """What a cell with this source displays in IPython."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    try:
        with capture_output() as captured:
            shell.run_cell(source)
        return captured.outputs
    finally:
        InteractiveShell.clear_instance()


def test_in_a_notebook_the_output_carries_the_data():
    source = "from llmnb.record import record; record('f1', 0.5, unit='share')"
    data = outputs_of(source)[0].data
    expected = {"name": "f1", "value": 0.5, "better": "higher", "unit": "share"}
    empty = dict.fromkeys(("low", "high", "label", "baseline"))
    assert data[METRIC_MIME] == expected | empty
    assert data["text/plain"] == "f1 = 0.5 share  (higher is better)"


def test_an_answer_names_its_figure_by_the_alt_text():
    figure = "from llmnb.plots import bars; figure = bars({'a': 1.0}, 'share', 'A title')"
    source = f"{figure}\nfrom llmnb.record import record; record.answer('*Yes*.', figure=figure)"
    data = outputs_of(source)[0].data
    alt = bars({"a": 1.0}, "share", "A title").alt
    assert data[ANSWER_MIME] == {"text": "*Yes*.", "figure": alt} and alt.startswith("A title")
    assert data["text/markdown"] == "*Yes*."


def test_a_stored_benchmark_is_found_and_another_is_not():
    stored = benchmark("generation")
    assert stored["name"] == "generation" and 0 < stored["low"] <= stored["ratio"] <= stored["high"]
    with pytest.raises(FileNotFoundError, match="'nothing'"):
        benchmark("nothing")
