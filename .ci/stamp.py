"""Write where this repository is published into badges, links and the notebooks' set-up cells.

python .ci/stamp.py [OWNER/REPO | none]      (make stamp [REPOSITORY=OWNER/REPO])

Without an argument, owner and repository are those of the git remote `origin`. They are stored
under [tool.llmnb] in pyproject.toml, and what stands there decides what the texts get: with an
owner the badges and the address of its archive, with `published = true` the release on the
package index in that one's place. `none` takes all of it back, so that no link leads nowhere.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLAB = "https://colab.research.google.com"
_NAME = r"[\w.-]+"


def settings() -> dict:
    """[tool.llmnb] in pyproject.toml (owner, repo, ref, published), and the package's version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["tool"]["llmnb"] | {"version": project["project"]["version"]}


def repository_in(url: str) -> str | None:
    """OWNER/REPO in a git remote's address at GitHub, by https or ssh; None for any other."""
    host = r"(?:[^/@]+@)?(?:www\.|ssh\.)?github\.com"
    match = re.fullmatch(
        rf"(?:(?:https?|git|ssh)://{host}(?::\d+)?/|{host}:/?)({_NAME}/{_NAME}?)(?:\.git)?/?",
        url.strip(),
        re.IGNORECASE,
    )
    return match and match[1]


def repository_of_origin() -> str:
    """OWNER/REPO of this checkout's remote `origin`; SystemExit with what to do if it has none."""

    def git(*arguments: str) -> str | None:
        if not shutil.which("git"):
            return None
        run = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
        return None if run.returncode else run.stdout.strip()

    # An unpacked archive can lie inside another repository, whose remote isn't ours.
    is_a_checkout = git("rev-parse", "--show-prefix") == ""
    repository = repository_in((is_a_checkout and git("remote", "get-url", "origin")) or "")
    if repository is None:
        raise SystemExit(
            "This checkout has no git remote 'origin' at github.com: add one with "
            "`git remote add origin …`, or name it, `make stamp REPOSITORY=owner/name`."
        )
    return repository


def with_badges(text: str, badges: list[str]) -> str:
    """The Markdown with these badges behind its title, instead of those that it has."""
    title, _, rest = text.partition("\n\n")
    if rest.startswith("[!["):
        rest = rest.partition("\n\n")[2]
    return "\n\n".join([title, *(["\n".join(badges)] if badges else []), rest])


def colab_badge(name: str, alt: str, where: dict) -> str:
    """The badge that opens notebooks/NAME in Colab."""
    address = f"{where['owner']}/{where['repo']}/blob/{where['ref']}/notebooks/{name}"
    return f"[![{alt}]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{address})"


def stamped_readme(text: str, where: dict) -> str:
    """The README with the badges of Colab and CI, or with none."""
    badges = []
    if where["owner"]:
        badges.append(colab_badge("01_concepts.ipynb", "Open 01 in Colab", where))
        workflow = f"https://github.com/{where['owner']}/{where['repo']}/actions/workflows/ci.yml"
        badges.append(f"[![CI]({workflow}/badge.svg)]({workflow})")
    return with_badges(text, badges)


def stamped_set_up(source: str, where: dict) -> str:
    """The set-up cell with what it installs where there is no wheel.

    That is the release on the package index if it is ours, else the repository's archive.
    """
    published = ""
    if where["published"]:
        published = f"llmnb=={where['version']}"
    elif where["owner"]:
        address = f"github.com/{where['owner']}/{where['repo']}/archive/{where['ref']}.zip"
        published = f"llmnb @ https://{address}"
    return re.sub(r'(?m)^PUBLISHED = ".*?"', f'PUBLISHED = "{published}"', source)


def stamped_notebook(text: str, name: str, where: dict) -> str:
    """A notebook's file with its badge and its set-up cell stamped; all else stays as it is."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["id"] == "title":
            badges = [colab_badge(name, "Open in Colab", where)] if where["owner"] else []
            cell["source"] = with_badges(source, badges).splitlines(keepends=True)
        elif cell["id"] == "set-up":
            cell["source"] = stamped_set_up(source, where).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def store(repository: str) -> None:
    """Write OWNER/REPO, or nothing, under [tool.llmnb]."""
    file = ROOT / "pyproject.toml"
    text = file.read_text(encoding="utf-8")
    owner, _, repo = repository.partition("/")
    for key, value in (("owner", owner), ("repo", repo)):
        text = re.sub(rf'(?m)^{key} = ".*"$', f'{key} = "{value}"', text)
    write(file, text)


def write(path: Path, text: str) -> None:
    """Write with the line ends of the repository, also on Windows."""
    path.write_text(text, encoding="utf-8", newline="\n")


def main(arguments: list[str]) -> None:
    """Store the repository, then stamp the README and every notebook."""
    repository = arguments[0] if arguments else repository_of_origin()
    if repository == "none":
        repository = ""
    elif not re.fullmatch(rf"{_NAME}/{_NAME}", repository):
        raise SystemExit(f"{repository!r} is neither OWNER/REPO nor none.")
    store(repository)
    where = settings()
    readme = ROOT / "README.md"
    write(readme, stamped_readme(readme.read_text(encoding="utf-8"), where))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        write(path, stamped_notebook(path.read_text(encoding="utf-8"), path.name, where))
    if repository:
        print(f"Badges and set-up cells point at {repository}, {where['ref']}.")
    else:
        print("The badges, and the links to a repository, are gone.")


if __name__ == "__main__":
    main(sys.argv[1:])
