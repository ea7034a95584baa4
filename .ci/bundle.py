"""Write dist/llmnb-colab.zip: a folder with the wheel and the notebooks, to open in Colab.

python .ci/bundle.py      (make colab-bundle)

The wheel is the one source of llmnb that needs no published repository; the set-up cell of each
notebook looks for it.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "dist" / "llmnb-colab.zip"
README = """llmnb for Google Colab: the notebooks, and in one wheel the package that they need.
1. Upload this folder to the top of your Google Drive, and open a notebook there with Colaboratory.
2. In Colab, open the folder panel on the left and mount your Drive; or upload the .whl file there.
3. Under Runtime, change the runtime type to a GPU if you want the larger models.
4. Choose Runtime, Run all: the first cell installs the wheel, and fetching models takes minutes.
"""


def main(bundle: Path = BUNDLE) -> None:
    """Build the wheel from this checkout and zip it with the notebooks."""
    bundle.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
        subprocess.run(build, check=True)
        (wheel,) = Path(folder).glob("llmnb-*.whl")
        with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in [wheel, *sorted((ROOT / "notebooks").glob("*.ipynb"))]:
                archive.write(path, f"{bundle.stem}/{path.name}")
            archive.writestr(f"{bundle.stem}/README.txt", README)
    print(f"{bundle}: {bundle.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
