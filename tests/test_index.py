"""The records of the runs, and the page that compares them."""

import json
import math
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import hostile
import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat import v4
from test_report import PIXEL, RUN

from llmnb.record import ANSWER_MIME
from llmnb.runs.index import write_index
from llmnb.runs.records import duration_text, memory_text, number_text, read_runs, time_text

NOW = datetime.now(UTC)


def save(out, folder="04-a", pages=(), **changes):
    """A run's folder with its record."""
    run = RUN | {"notebook": "04_fine_tuning", "metrics": {}, "hardware": {}}
    run_folder = out / "runs" / folder
    run_folder.mkdir(parents=True)
    parameters = {"parameters": {"seed": 0, "method": "lora"}}
    (run_folder / "run.json").write_text(json.dumps(run | parameters | changes))
    for name in pages:
        (run_folder / name).write_text("<script>not read</script>")


def metric(value, better="higher", **more):
    return {"value": value, "better": better, "unit": None, "low": None, "high": None} | more


def page(out):
    return BeautifulSoup(write_index(out).read_bytes(), "html.parser")


def texts(soup, selector):
    return [" ".join(element.get_text(" ").split()) for element in soup.select(selector)]


def status(out, **changes):
    save(out, status="running", **changes)
    (run,) = read_runs(out)
    return run["status"]


@pytest.mark.parametrize(("age_days", "expected"), [(0, "running"), (1, "killed")])
def test_a_process_is_the_runs_own_unless_it_is_younger(tmp_path, age_days, expected):
    started = (NOW - timedelta(days=age_days)).isoformat()
    assert status(tmp_path, pid=os.getpid(), started=started) == expected


def test_a_running_run_without_its_process_was_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert status(tmp_path, pid=process.pid, hardware={"host": platform.node()}) == "killed"
    assert read_runs(tmp_path)[0]["error"]["message"] == "The process of this run is gone."
    assert json.loads((tmp_path / "runs/04-a/run.json").read_text())["status"] == "running"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no zombies")
def test_a_process_that_nobody_waited_for_is_dead(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert status(tmp_path, pid=child.pid, started=later) == "killed"
    child.wait()


@pytest.mark.parametrize("pid", [999_999_999, None, "12", -1, 10**30, [1]])
def test_what_can_not_be_judged_is_left_running(tmp_path, pid):
    host = "somewhere-else" if pid == 999_999_999 else platform.node()
    assert status(tmp_path, pid=pid, hardware={"host": host}) == "running"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, ""),
        (b"{half", "Expecting"),
        (b"", "Expecting"),
        (b"[1]", "not the record"),
        (b"{}", "not the record"),
        (b'{"status": ["ok"]}', "not the record"),
        (b'{"schema": 2, "status": "ok"}', "schema 2"),
        (b'{"schema": "<b>", "status": "ok"}', "schema <b>"),
        (b"\xff\xfe", "decode"),
        (b"[" * 100_000, "recursion"),
        (b'{"status": "ok", "seconds": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_a_record_that_can_not_be_used_is_shown_as_corrupt(tmp_path, content, reason):
    save(tmp_path)
    file = tmp_path / "runs/04-a/run.json"
    file.unlink()
    file.mkdir() if content is None else file.write_bytes(content)
    (run,) = read_runs(tmp_path)
    assert (run["folder"], run["status"]) == ("04-a", "corrupt")
    assert reason in run["error"]["message"] and str(tmp_path) not in run["error"]["message"]
    save(tmp_path, "04-b")
    soup = page(tmp_path)
    (line,) = texts(soup, "#unreadable li")
    assert line.startswith("? corrupt 04-a") and len(soup.select(".card")) == 2


def test_no_runs_is_a_friendly_page(tmp_path):
    soup = page(tmp_path / "new")
    assert "No run is recorded here yet" in soup.text and not soup.select(".card")


def save_sweep(out, n_seeds=3, lead=0.1, **changes):
    """Two learning rates with these seeds; the larger one is better by the lead, more or less."""
    for lr in (1e-4, 3e-4):
        for seed in range(n_seeds):
            f1 = 0.8 + 0.05 * seed + (lead + 0.004 * seed if lr == 3e-4 else 0)
            metrics = {"f1": metric(f1, label="F1 score"), "loss": metric(1 - f1 % 0.05, "lower")}
            parameters = {"lr": lr, "seed": seed, "out": f"out-{lr}-{seed}", "rows": 9}
            name = f"04-{lr}-{seed}"
            save(out, name, metrics=metrics, parameters=parameters, seconds=100 * lr, **changes)


def test_settings_are_compared_over_their_seeds_and_the_best_is_marked(tmp_path):
    save_sweep(tmp_path)
    soup = page(tmp_path)
    assert texts(soup, "h3") == ["2 settings: lr"]  # neither the seed nor where it was written
    verdicts = texts(soup, ".verdict")
    assert verdicts[0].startswith("lr 0.0003 beats lr 0.0001 by 0.10")
    assert verdicts[0].endswith("over 3 seeds.") and len(verdicts) == 2
    table = soup.select_one(".settings")
    first, second = texts(table, "tbody tr")
    assert first.startswith("lr 0.0001 ×3 0.85 [") and first.endswith("worse")
    assert second.startswith("lr 0.0003 ×3 ★ 0.95 [")
    assert len(table.select(".best")) == 1
    by_parameter, by_cost = soup.select_one(".charts").select("svg")
    assert "against lr" in by_parameter["aria-label"]
    assert "against seconds a run" in by_cost["aria-label"]
    heights = [float(circle["cy"]) for circle in by_parameter.select("circle")]
    assert heights[1] < heights[0]  # higher values stand higher
    assert "2 metrics with every pair" in soup.select_one("footer").text


def test_what_is_the_same_in_all_settings_is_listed_and_not_compared(tmp_path):
    for n in range(4):
        metrics = {"same": metric(0.1 + 0.2 if n % 2 else 0.3), "other": metric(n % 2 + n / 9)}
        save(tmp_path, f"04-{n}", metrics=metrics, parameters={"lr": n % 2, "seed": n // 2})
    soup = page(tmp_path)
    assert texts(soup, ".measured div") == ["same ↑ 0.3"] and len(soup.select(".verdict")) == 1
    assert "1 metric with every pair" in soup.select_one("footer").text


def test_every_comparison_on_the_page_widens_the_intervals(tmp_path):
    save_sweep(tmp_path)
    (alone,) = texts(page(tmp_path), ".verdict")[:1]
    for name in ("05_a", "06_b"):
        save_sweep(tmp_path / "more", notebook=name)
        for folder in (tmp_path / "more/runs").iterdir():
            folder.rename(tmp_path / "runs" / f"{name}-{folder.name}")
    assert texts(page(tmp_path), ".verdict")[0] != alone


def test_the_same_seed_again_is_no_repeat(tmp_path):
    for number, f1 in enumerate([0.8, 0.9]):
        for attempt in (1, 2):
            started = f"2026-11-2{attempt}T10:00:00+00:00"
            metrics, parameters = {"f1": metric(f1 + attempt)}, {"seed": 0, "lr": number}
            changes = {"metrics": metrics, "parameters": parameters, "started": started}
            save(tmp_path, f"04-{number}-{attempt}", **changes)
    soup = page(tmp_path)
    assert texts(soup, ".settings tbody tr") == ["lr 0 2.8", "lr 1 ★ 2.9"]  # of the newer ones
    assert "--repeat 3" in soup.text and not soup.select(".verdict")


def test_runs_of_other_code_are_no_repeats(tmp_path):
    for seed, code in enumerate(["aa", "aa", "bb"]):
        parameters = {"seed": seed, "method": "lora"}
        changes = {"metrics": {"f1": metric(0.8 + seed)}, "source": {"code": code}}
        save(tmp_path, f"04-{seed}", parameters=parameters, **changes)
    rows = texts(page(tmp_path), ".settings tbody tr")
    assert [row.split()[:2] for row in rows] == [["code", "aa"], ["code", "bb"]]


def test_failures_show_their_message_until_the_run_ended_well(tmp_path):
    error = {"cell": 3, "type": "OSError", "message": "no disk"}
    save(tmp_path, "04-a", ["report.html"], status="failed", error=error, metrics={"f": metric(1)})
    save(tmp_path, "04-b", status="failed", error=error, parameters={"seed": 1})
    assert len(texts(page(tmp_path), ".failures li")) == 2
    save(tmp_path, "04-b-2", attempt=2, parameters={"seed": 1})
    soup = page(tmp_path)
    (line,) = texts(soup, ".failures li")
    assert line.startswith("✕ failed OSError in cell 3 no disk") and "report" in line
    assert (
        texts(soup, ".all summary") == ["All 3 runs"] and "✓ ok" in soup.select_one(".facts").text
    )


COLAB = "https://colab.research.google.com/github/someone/llmnb/blob/main/notebooks/04_a.ipynb"


def test_a_card_has_the_question_the_answer_the_key_figure_and_links(tmp_path):
    save(tmp_path, pages=["report.html"], metrics={"f1": metric(0.5, low=0.4, high=0.6)})
    picture = hostile.display_output({"image/png": {"alt": "a"}}, image_png=PIXEL)
    answer = hostile.display_output(**{ANSWER_MIME: {"text": "*Yes.*", "figure": "a"}})
    title = f"# What is **it**?\n\n[![Open in Colab](x.svg)]({COLAB})"
    cells = [v4.new_markdown_cell(title), v4.new_code_cell(outputs=[picture, answer])]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "runs/04-a/notebook.ipynb")
    soup = page(tmp_path)
    assert texts(soup, "h2") == ["What is it ?"] and texts(soup, ".answer em") == ["Yes."]
    image = soup.select_one(".answer img")
    assert image["alt"] == "a" and image["src"] == f"data:image/png;base64,{PIXEL}"
    assert texts(soup, ".measured div") == ["f1 ↑ 0.50 [0.40, 0.60]"]
    links = {link.text: link["href"] for link in soup.select(".facts a")}
    folder = "runs/04-a"
    pages = {"report": f"{folder}/report.html", "notebook": f"{folder}/notebook.ipynb"}
    assert links == pages | {"open in Colab": COLAB}


@pytest.mark.parametrize(
    ("metrics", "marked"),
    [
        ([metric(0.8)], 0),
        ([metric(0.8), metric(0.8)], 0),
        ([metric(0.8), metric(0.7)], 1),
        ([metric(0.8), metric(0.8), metric(0.7)], 2),
        ([metric(0.8, "sideways"), metric(0.7, "sideways")], 0),
        ([metric(math.nan), metric(0.7)], 0),
        ([metric("0.9"), metric(0.7), metric(True)], 0),
        ([metric(1e308), metric(-1e308), metric(10**400), metric(math.inf)], 0),
        ([metric(1e16), metric(1e15), metric(5e-324)], 1),
        ([metric(1e16), metric(1e16 + 2)], 0),  # no more than rounding
        (["not a metric", None, 3], 0),
    ],
)
def test_which_values_are_best(tmp_path, metrics, marked):
    for n, one in enumerate(metrics):
        save(tmp_path, f"04-{n}", metrics={"m": one}, parameters={"n": n})
    soup = page(tmp_path)
    assert len(soup.select("tr.best")) == marked
    coordinates = [float(c[key]) for c in soup.select("circle") for key in ("cx", "cy")]
    assert all(0 <= number <= 360 for number in coordinates)


def test_links_lead_to_what_exists_and_notebooks_are_not_read(tmp_path):
    odd = "04 a#b%?\u2019&"
    save(tmp_path, odd, ["report.html", "notebook.ipynb"])
    save(tmp_path, "04-b", ["notebook.ipynb"])
    save(tmp_path, "04-c", notebook="03_pretraining")
    soup = page(tmp_path)
    assert texts(soup, "h2") == ["03_pretraining", "04_fine_tuning"]
    hrefs = [link["href"] for link in soup.select(".all a")]
    assert hrefs[0] == "runs/04-b/notebook.ipynb" and len(hrefs) == 3
    assert hrefs[1] == "runs/04%20a%23b%25%3F%E2%80%99%26/report.html"
    assert "not read" not in str(soup)


def test_a_thousand_runs_make_a_page_of_three_megabytes_and_leave_nothing_behind(tmp_path):
    for n in range(1000):
        metrics = {f"m{k}": metric(n % 7 + k + n / 1000, low=-1, high=n + 9) for k in range(4)}
        parameters = {"seed": n % 5, "lr": n // 5 * 1e-4, "width": n // 5 % 4}
        save(tmp_path, f"04-{n}", metrics=metrics, parameters=parameters)
    soup = page(tmp_path)
    assert texts(soup, "h3") == ["200 settings: lr , width"]
    assert len(soup.select(".all li")) == 1000 and len(soup.select(".verdict")) == 4
    assert all(len(svg.select("text")) <= 30 for svg in soup.select("svg"))
    assert (tmp_path / "index.html").stat().st_size < 3_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "runs"]


def test_numbers_as_a_person_writes_them():
    assert [number_text(x) for x in (0.84125, 12345.6, 7, -0.0001, 1e300, True, None, "<")] == [
        *("0.8413", "12,346", "7", "-0.0001", "1e+300", "True", "None", "<")
    ]
    assert [duration_text(x) for x in (0.04, 59.96, 125, 11400, None, -3, "x")] == [
        *("0.0 s", "60.0 s", "2 min 5 s", "3 h 10 min", "None", "-3.0 s", "x")
    ]
    assert [memory_text(x) for x in (812.4, 1912, [1])] == ["812 MB", "1.9 GB", "[1]"]
    assert [time_text(x) for x in ("2026-11-23T19:52:11+00:00", "2026-11-23 19:52", "soon", 3)] == [
        *("2026-11-23 19:52 UTC", "2026-11-23 19:52", "soon", "3")
    ]


def hostile_runs(out):
    for n, payload in enumerate(hostile.PAYLOADS.values()):
        record = hostile.run(payload) | ({"notebook": "same"} if n % 2 else {})
        save(out, f"{n}", ["report.html"], **record)
        for seed in (0, 1):  # settings with repeats, whose names stand in sentences and charts
            metrics = record["metrics"] | {"m": metric(n + n * seed / 9, "lower", unit=payload)}
            changes = {"status": "ok", "notebook": "compared", "metrics": metrics}
            parameters = {"p": payload, payload: payload, "seed": seed}
            save(out, f"{n}-{seed}", parameters=parameters, seconds=n + seed, **changes)
    book = hostile.notebook()
    (out / "runs/0-0/notebook.ipynb").write_text(json.dumps(book))
    save(out, "status", status="ok", notebook="same", metrics=hostile.run()["metrics"])


def test_hostile_records_are_inert(tmp_path):
    hostile_runs(tmp_path)
    hostile.assert_inert(write_index(tmp_path).read_text("utf-8"), charts=True)


@pytest.mark.browser
def test_hostile_records_in_a_real_browser(tmp_path):
    hostile_runs(tmp_path)
    path = write_index(tmp_path)
    with hostile.chromium() as browser:
        hostile.assert_nothing_happened(hostile.watch(browser, path), path)
        window = browser.new_page(viewport={"width": 380, "height": 800})
        window.goto(path.as_uri())
        assert window.evaluate("document.documentElement.scrollWidth") <= 380
