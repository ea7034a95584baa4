"""Every notebook in JupyterLab and a real browser, behind a closed proxy: Run All, then the checks.

This is the one full run of a notebook that the tests make under the smoke profile. It serves all
checks of a whole run: no error, no warning, the expected metrics, and what the reader sees.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request

import hostile
import pytest
from conftest import CLOSED_PROXY, NOTEBOOKS, disagreements, free_port

from llmnb.record import METRIC_MIME
from llmnb.runs import runner

pytestmark = [pytest.mark.slow, pytest.mark.browser]
HANG_SECONDS = 600  # only a hang takes so long
SETTINGS = {
    # Otherwise only the cells in view are in the document.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
READY = "window.jupyterapp?.shell.currentWidget?.context?.isReady"
IDLE = "jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'"
RUN_ALL = "jupyterapp.commands.execute('notebook:run-all-cells')"
CELLS = "jupyterapp.shell.currentWidget.content.model.toJSON().cells"


def wait_for_server(address: str, process: subprocess.Popen) -> bool:
    deadline = time.monotonic() + HANG_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/status?token=secret", timeout=60)
            return True
        except OSError:
            time.sleep(0.5)
    return False


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a JupyterLab on copies of the notebooks, each alone in a folder."""
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    folder = tmp_path_factory.mktemp("lab")
    settings = folder / "settings"
    settings.mkdir()
    (settings / "overrides.json").write_text(json.dumps(SETTINGS))
    for path in NOTEBOOKS:
        (folder / "work" / path.stem).mkdir(parents=True)
        shutil.copy(path, folder / "work" / path.stem)
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--IdentityProvider.token=secret", "--expose-app-in-browser"]
    command += ["--allow-root", f"--ServerApp.root_dir={folder / 'work'}"]
    command += [f"--{app}.app_settings_dir={settings}" for app in ("LabApp", "LabServerApp")]
    variables = {"LLMNB_PROFILE": "smoke", "JUPYTER_CONFIG_DIR": str(folder / "config")}
    environment = os.environ | variables | CLOSED_PROXY
    address = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            if not wait_for_server(address, process):
                pytest.fail((folder / "log").read_text()[-2000:])
            yield address
        finally:
            process.terminate()
            process.wait(HANG_SECONDS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_run_all_in_jupyterlab_without_a_network_gives_the_expected_metrics(path, server, tmp_path):
    console_errors = []
    with hostile.chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(1000 * HANG_SECONDS)
        page.on("console", lambda line: line.type == "error" and console_errors.append(line.text))
        page.on("pageerror", lambda error: console_errors.append(str(error)))
        # The badge's picture is on the network: an empty one stands for it.
        svg = {"content_type": "image/svg+xml", "body": '<svg xmlns="http://www.w3.org/2000/svg"/>'}
        page.route("https://colab.research.google.com/**", lambda route: route.fulfill(**svg))
        page.goto(f"{server}/lab/tree/{path.stem}/{path.name}?token=secret&reset")
        page.wait_for_function(READY)
        page.wait_for_function(IDLE)
        assert page.evaluate(RUN_ALL) is True
        page.wait_for_function(IDLE)
        cells = page.evaluate(CELLS)
        page.screenshot(path=tmp_path / "lab.png")
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        code_cells = [cell for cell in cells if cell["cell_type"] == "code" and cell["source"]]
        assert [output for output in outputs if output["output_type"] == "error"] == []
        assert all(cell["execution_count"] for cell in code_cells)
        assert [output["text"] for output in outputs if output.get("name") == "stderr"] == []
        assert disagreements(runner.collect(cells, METRIC_MIME), path) == []
        assert console_errors == []
        # What the reader sees: every figure is there.
        page.wait_for_function("[...document.images].every(image => image.complete)")
        pictures = "[...document.querySelectorAll('.jp-OutputArea-output img')]"
        widths = page.evaluate(f"{pictures}.map(image => image.naturalWidth)")
        figures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert len(widths) == len(figures) > 0 and min(widths) > 100
