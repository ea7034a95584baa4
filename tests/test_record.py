"""A recorded metric: one tidy line for a reader, and the data for a report."""

import pytest

from llmnb.record import METRIC_MIME, benchmark, describe, record


def test_outside_a_notebook_it_prints_a_line(capsys):
    record("accuracy", 0.84, low=0.82, high=0.86)
    assert capsys.readouterr().out == "accuracy = 0.84  [0.82, 0.86]  (higher is better)\n"


def test_a_unit_and_the_direction_are_said():
    metric = {"name": "loss", "value": 2.0, "better": "lower", "unit": "nats", "low": None}
    assert describe(metric) == "loss = 2 nats  (lower is better)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "<b>", "value": 1}, "name"),
        ({"name": "x", "value": float("nan")}, "not finite"),
        ({"name": "x", "value": None}, "no number"),
        ({"name": "x", "value": 1, "better": "bigger"}, "higher"),
        ({"name": "x", "value": 1, "low": 0}, "both ends"),
        ({"name": "x", "value": 1, "low": 2, "high": 3}, "outside"),
    ],
)
def test_what_no_report_could_compare_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        record(**arguments)


def test_in_a_notebook_the_output_carries_the_data():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    try:
        with capture_output() as captured:
            shell.run_cell("from llmnb.record import record; record('f1', 0.5, unit='share')")
        data = captured.outputs[0].data
    finally:
        InteractiveShell.clear_instance()
    expected = {"name": "f1", "value": 0.5, "better": "higher", "unit": "share"}
    assert data[METRIC_MIME] == expected | {"low": None, "high": None}
    assert data["text/plain"] == "f1 = 0.5 share  (higher is better)"


def test_a_stored_benchmark_is_found_and_another_is_not():
    stored = benchmark("generation")
    assert stored["name"] == "generation" and 0 < stored["low"] <= stored["ratio"] <= stored["high"]
    with pytest.raises(FileNotFoundError, match="'nothing'"):
        benchmark("nothing")
