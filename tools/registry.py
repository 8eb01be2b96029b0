"""What ComfyUI's registry asks for and only the publisher knows, written into pyproject.toml before publishing.

    python tools/registry.py --publisher ID            the repository is that of the remote `origin`
    python tools/registry.py --publisher ID --repository https://github.com/OWNER/NAME

The registry wants the icon as an address (SVG, PNG, JPG or GIF, square, at most 400 px) and the repository's own.
Fields: https://docs.comfy.org/registry/specifications. Standard library only.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ICON = "docs/images/icon.svg"
# Where a host serves a file of a repository as it is.
RAW = {
    "github.com": "https://raw.githubusercontent.com/{path}/main/{file}",
    "gitlab.com": "https://gitlab.com/{path}/-/raw/main/{file}",
    "gitee.com": "https://gitee.com/{path}/raw/main/{file}",
}
ADDRESS = re.compile(r"(?:https://|git@|ssh://git@)(?P<host>[\w.-]+)[/:](?P<path>[\w.-]+/[\w.-]+?)(?:\.git)?/?")


def origin() -> str:
    done = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit("the repository has no remote 'origin'; give its address with --repository")
    return done.stdout.strip()


def filled(project: str, publisher: str, repository: str) -> str:
    """pyproject.toml's text with PublisherId, Icon and the repository's address set; other lines stay."""
    address = ADDRESS.fullmatch(repository)
    if not address or address["host"] not in RAW:
        raise SystemExit(f"repository {repository!r} is not OWNER/NAME on one of {', '.join(RAW)}")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", publisher):
        raise SystemExit(f"publisher {publisher!r} is not an id as on registry.comfy.org: lower case, digits, hyphens")
    host, path = address["host"], address["path"]
    values = {
        "PublisherId": publisher,
        "Icon": RAW[host].format(path=path, file=ICON),
        "Repository": f"https://{host}/{path}",
    }
    if "[project.urls]" not in project:
        project = project.replace("[project.scripts]", '[project.urls]\nRepository = ""\n\n[project.scripts]', 1)
    for name, value in values.items():
        project, found = re.subn(rf'^{name} = ".*"$', f'{name} = "{value}"', project, flags=re.MULTILINE)
        if found != 1:
            raise SystemExit(f"pyproject.toml has {found} lines {name} = ..., not one")
    return project


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--publisher", required=True, help="your publisher id on registry.comfy.org")
    parser.add_argument("--repository", help="https address of this repository (default: the remote 'origin')")
    options = parser.parse_args()
    project = ROOT / "pyproject.toml"
    text = filled(project.read_text(encoding="utf-8"), options.publisher, options.repository or origin())
    project.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
