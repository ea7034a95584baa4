"""Every notebook in JupyterLab and a real browser: Run All; no error in cells or on the console."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import hostile
import pytest
from conftest import NOTEBOOKS, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.browser]
SETTINGS = {
    # Otherwise only the cells in view are in the document.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
READY = "window.jupyterapp?.shell.currentWidget?.context?.isReady"
IDLE = "jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'"
RUN_ALL = "jupyterapp.commands.execute('notebook:run-all-cells')"
CELLS = "jupyterapp.shell.currentWidget.content.model.toJSON().cells"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server on copies of the notebooks, and a page's parameters."""
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    folder = tmp_path_factory.mktemp("lab")
    (folder / "settings").mkdir()
    (folder / "settings" / "overrides.json").write_text(json.dumps(SETTINGS))
    work = folder / "work"
    copy = [sys.executable, "-m", "llmnb.cli", "copy", str(work)]
    subprocess.run(copy, check=True, cwd=ROOT, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--IdentityProvider.token=secret", "--expose-app-in-browser"]
    command += ["--allow-root", f"--ServerApp.root_dir={work}"]
    command += [f"--{app}.app_settings_dir={folder}/settings" for app in ("LabApp", "LabServerApp")]
    own = {"LLMNB_PROFILE": "smoke", "JUPYTER_CONFIG_DIR": str(folder / "config")}
    address = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
        try:
            for _ in range(120):
                try:
                    urllib.request.urlopen(f"{address}/api/status?token=secret", timeout=5)
                    break
                except OSError:
                    time.sleep(0.5)
            else:
                pytest.fail((folder / "log").read_text()[-2000:])
            yield address
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_run_all_in_jupyterlab(path, server, tmp_path):
    with hostile.chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        wrong = []
        page.on("console", lambda line: line.type == "error" and wrong.append(line.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        # The badge's picture is on the network: here an empty one stands for it.
        svg = {"content_type": "image/svg+xml", "body": '<svg xmlns="http://www.w3.org/2000/svg"/>'}
        page.route("https://colab.research.google.com/**", lambda route: route.fulfill(**svg))
        page.goto(f"{server}/lab/tree/{path.name}?token=secret&reset")
        page.wait_for_function(READY, timeout=60_000)
        page.wait_for_function(IDLE, timeout=60_000)
        page.set_default_timeout(300_000)
        assert page.evaluate(RUN_ALL) is True
        page.wait_for_function(IDLE)
        cells = page.evaluate(CELLS)
        page.screenshot(path=tmp_path / "lab.png")
        errors = [o for c in cells for o in c.get("outputs", []) if o["output_type"] == "error"]
        code = [cell for cell in cells if cell["cell_type"] == "code" and cell["source"]]
        assert errors == [] and all(cell["execution_count"] for cell in code)
        streams = [o for c in cells for o in c.get("outputs", []) if o.get("name") == "stderr"]
        assert streams == [], streams[0]["text"]
        assert wrong == []
        # What the reader sees: every figure is there, with its alternative text.
        page.wait_for_function("[...document.images].every(image => image.complete)")
        pictures = "[...document.querySelectorAll('.jp-OutputArea-output img')]"
        sizes = page.evaluate(f"{pictures}.map(image => [image.naturalWidth, image.alt.length])")
        assert len(sizes) >= 2 and all(width > 100 for width, _ in sizes)
