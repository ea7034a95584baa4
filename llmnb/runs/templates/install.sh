#!/bin/sh
# Install llmnb from this folder, without a network: ./install.sh [FOLDER]   (default: here)
set -eu
cd "$(dirname "$0")"
folder=${1:-$PWD}
python=${PYTHON:-python3}
expected='PLATFORM'
actual=$("$python" -c 'import sys, sysconfig
print("Python %d.%d on %s" % (*sys.version_info[:2], sysconfig.get_platform()))')
if [ "$actual" != "$expected" ]; then
  echo "This bundle is for $expected, and $python is $actual." >&2
  echo "Name another Python: PYTHON=python3.x ./install.sh" >&2
  exit 1
fi
"$python" - <<'END'
import hashlib, sys
for line in open("SHA256SUMS", encoding="utf-8"):
    digest, name = line.rstrip("\n").split("  ", 1)
    with open(name, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            sys.exit(f"{name} is damaged: unpack the archive again.")
END
mkdir -p "$folder"
"$python" -m venv "$folder/.venv"
if ! "$folder/.venv/bin/python" -m pip install -q --disable-pip-version-check --no-index \
  --find-links wheels llmnb; then
  echo "The bundle was made with Python MADE_WITH, and $("$python" --version) lacks something." >&2
  echo "Name another Python: PYTHON=python3.x ./install.sh" >&2
  exit 1
fi
cache=$("$folder/.venv/bin/python" -c 'from llmnb import files; print(files.cache_dir())')
mkdir -p "$cache/assets"
for asset in assets/*; do
  [ -e "$cache/$asset" ] && continue
  rm -rf "$cache/assets/.copy"
  cp -R "$asset" "$cache/assets/.copy"
  mv "$cache/assets/.copy" "$cache/$asset"
done
cd "$folder"
.venv/bin/llmnb copy notebooks >/dev/null
echo "Installed. Go on with: cd $folder && .venv/bin/llmnb run --all --profile PROFILE"
