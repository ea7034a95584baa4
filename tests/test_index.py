"""The records of the runs, and the page that compares them."""

import json
import math
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import hostile
import pytest
from bs4 import BeautifulSoup

from llmnb.runs.index import write_index
from llmnb.runs.records import duration_text, memory_text, number_text, read_runs, time_text

NOW = datetime.now(UTC)


def save(out, folder="04-a", pages=(), **changes):
    """A run's folder with its record; a change to None leaves the key out."""
    run = {
        "schema": 1,
        "notebook": "04_fine_tuning",
        "status": "ok",
        "parameters": {"seed": 0, "method": "lora"},
        "metrics": {},
        "pid": 1,
        "started": "2026-11-23T19:52:11+00:00",
        "seconds": 83.2,
        "peak_memory_mb": 1912.4,
        "hardware": {},
    }
    place = out / "runs" / folder
    place.mkdir(parents=True)
    kept = {key: value for key, value in (run | changes).items() if value is not None}
    (place / "run.json").write_text(json.dumps(kept))
    for name in pages:
        (place / name).write_text("<script>not read</script>")


def metric(value, better="higher", **more):
    return {"value": value, "better": better, "unit": None, "low": None, "high": None} | more


def page(out):
    return BeautifulSoup(write_index(out).read_bytes(), "html.parser")


def rows(soup):
    return [
        [" ".join(cell.get_text(" ").split()) for cell in row.find_all("td")]
        for row in soup.select("tbody tr")
    ]


def status(out, **changes):
    save(out, status="running", **changes)
    (run,) = read_runs(out)
    return run["status"]


def finished_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_running_run_is_alive_while_its_process_is(tmp_path):
    assert status(tmp_path, pid=os.getpid(), started=NOW.isoformat()) == "running"


def test_a_running_run_without_its_process_was_killed(tmp_path):
    pid = finished_pid()
    assert status(tmp_path, pid=pid, hardware={"host": platform.node()}) == "killed"
    assert read_runs(tmp_path)[0]["error"]["message"] == "The process of this run is gone."
    assert json.loads((tmp_path / "runs/04-a/run.json").read_text())["status"] == "running"


def test_a_process_that_is_younger_than_the_run_is_another_one(tmp_path):
    earlier = (NOW - timedelta(days=1)).isoformat()
    assert status(tmp_path, pid=os.getpid(), started=earlier) == "killed"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no zombies")
def test_a_process_that_nobody_waited_for_is_dead(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert status(tmp_path, pid=child.pid, started=later) == "killed"
    child.wait()


@pytest.mark.parametrize("pid", [999_999_999, None, "12", -1, 10**30, True, [1]])
def test_what_can_not_be_judged_is_left_running(tmp_path, pid):
    assert status(tmp_path, pid=pid, hardware={"host": "somewhere-else"}) == "running"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
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
    (tmp_path / "runs/04-a/run.json").write_bytes(content)
    (run,) = read_runs(tmp_path)
    assert (run["folder"], run["status"]) == ("04-a", "corrupt")
    assert reason in run["error"]["message"] and str(tmp_path) not in run["error"]["message"]
    (row,) = rows(page(tmp_path))
    assert row[1].startswith("? corrupt") and row[2] == "04-a"


def test_a_record_that_is_a_folder(tmp_path):
    (tmp_path / "runs/x/run.json").mkdir(parents=True)
    assert read_runs(tmp_path)[0]["status"] == "corrupt"


def test_no_runs_is_a_friendly_page(tmp_path):
    soup = page(tmp_path / "new")
    assert "No run is recorded here yet" in soup.text and not soup.find("table")


def test_the_table_shows_what_differs_and_marks_the_best(tmp_path):
    for n, (f1, loss) in enumerate([(0.81, 0.5), (0.84, 0.4), (0.83, 0.3)]):
        metrics = {"f1": metric(f1, low=f1 - 0.02, high=f1 + 0.02), "loss": metric(loss, "lower")}
        parameters = {"seed": n, "method": "lora"} | ({"rows": 9} if n == 2 else {})
        started = f"2026-11-2{n}T10:00:00+00:00"
        save(tmp_path, f"04-{n}", metrics=metrics, parameters=parameters, started=started)
    failed = {"f1": metric(0.99)}
    error = {"cell": 3, "type": "OSError", "message": "no disk"}
    save(tmp_path, "04-9", status="failed", metrics=failed, error=error, started="2026-11-29")
    soup = page(tmp_path)
    heads = [" ".join(th.get_text(" ").split()) for th in soup.select("thead th")]
    assert heads[3:] == ["seed", "rows", "f1 ↑", "loss ↓", "Time", "Memory", "Started"]
    newest, third, second, first = rows(soup)  # seed of the failed run: 0, like the first's
    assert newest[1] == "✕ failed OSError in cell 3 no disk" and newest[5] == "0.99"
    assert first[3:7] == ["0", "–", "0.81 [0.79, 0.83]", "0.5"]
    assert second[5:7] == ["★ 0.84 [0.82, 0.86]", "0.4"]
    assert third[3:7] == ["2", "9", "0.83 [0.81, 0.85]", "★ 0.3"]
    assert third[7:] == ["1 min 23 s", "1.9 GB", "2026-11-22 10:00 UTC"]
    assert len(soup.select("svg")) == 2
    chart = soup.select("svg")[0]
    assert len(chart.select("circle")) == 4 and len(chart.select("path")) == 3
    assert len(chart.select(".best")) == 1 and len(chart.select(".unfinished")) == 1
    assert "Run 2: 0.84 [0.82, 0.86] seed=1" in chart.text
    heights = [float(circle["cy"]) for circle in chart.select("circle")]
    assert sorted(heights) == [heights[i] for i in (3, 1, 2, 0)]  # higher values stand higher


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
        ([metric(1e16), metric(1e16 + 2), metric(5e-324)], 1),
        (["not a metric", None, 3], 0),
    ],
)
def test_which_values_are_best(tmp_path, metrics, marked):
    for n, one in enumerate(metrics):
        save(tmp_path, f"04-{n}", metrics={"m": one})
    soup = page(tmp_path)
    assert len(rows(soup)) == len(metrics) and len(soup.select("td.best")) == marked
    places = [float(c[key]) for c in soup.select("circle") for key in ("cx", "cy")]
    assert all(0 <= place <= 360 for place in places)


def test_links_lead_to_what_exists_and_notebooks_are_not_read(tmp_path):
    odd = "04 a#b%?\u2019&"
    save(tmp_path, odd, ["report.html", "notebook.ipynb"])
    save(tmp_path, "04-b", ["notebook.ipynb"])
    save(tmp_path, "04-c", notebook="03_pretraining")
    soup = page(tmp_path)
    names = [heading.contents[0].strip() for heading in soup.select("h2")]
    assert names == ["03_pretraining", "04_fine_tuning"]
    hrefs = [link["href"] for link in soup.select("a")]
    assert hrefs[0] == "runs/04-b/notebook.ipynb" and len(hrefs) == 3
    assert hrefs[1] == "runs/04%20a%23b%25%3F%E2%80%99%26/report.html"
    assert "not read" not in str(soup)


def test_sixty_runs_fit_into_their_charts_and_leave_nothing_behind(tmp_path):
    for n in range(60):
        metrics = {f"m{k}": metric(n + k, low=n - 1, high=n + 9) for k in range(8)}
        save(tmp_path, f"04-{n}", metrics=metrics, parameters={"seed": n})
    soup = page(tmp_path)
    assert len(rows(soup)) == 60 and len(soup.select("svg")) == 8
    assert all(len(svg.select("text.run")) <= 15 for svg in soup.select("svg"))
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
