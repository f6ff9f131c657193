"""Links between the documents lead somewhere, and no file names a path of somebody's machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {".git", ".venv", "build", "dist", "runs"}

LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s+(\S+)", re.MULTILINE)
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
# Folders that exist on one machine only: homes, mounted disks, a workplace. Not preceded by
# what would make it the middle of a longer path or of an address.
MACHINE_PATH = re.compile(r"(?<![\w.$}~/*])/(?:work|root|home|Users|mnt|media|opt/[a-z])/?(?!\w)")


def repository_files() -> list[Path]:
    """The files under version control, or in an unpacked sdist all that are there."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
        paths = [ROOT / name for name in listing.decode().split("\0") if name]
    else:
        paths = [p for p in ROOT.rglob("*") if p.relative_to(ROOT).parts[0] not in SKIPPED]
    return sorted(path for path in paths if path.is_file())


FILES = repository_files()
DOCUMENTS = [path for path in FILES if path.suffix == ".md"]


def anchors(document: Path) -> set[str]:
    """The anchors that headings get: lower case, punctuation dropped, spaces to hyphens."""
    text = CODE.sub(lambda m: m[0] if "\n" not in m[0] else "", document.read_text())
    headings = re.findall(r"^#+\s+(.*?)\s*#*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def broken_links(document: Path) -> list[str]:
    text = CODE.sub("", document.read_text(encoding="utf-8"))
    broken = []
    for match in LINK.finditer(text):
        link = match[1] or match[2]
        if re.match(r"[a-z][a-z0-9+.-]*:", link):  # an address elsewhere
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists():
            broken.append(f"{link}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            broken.append(f"{link}: no such heading")
    return broken


def test_relative_links_exist() -> None:
    assert DOCUMENTS
    found = {str(d.relative_to(ROOT)): broken for d in DOCUMENTS if (broken := broken_links(d))}
    assert found == {}


def test_broken_links_are_found(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text(
        "# A heading\n[here](#a-heading) [gone](b.md) ![picture](c.png) [there](a.md#elsewhere)\n"
        "[web](https://example.org/x.md) `[code](d.md)`\n\n[named]: e.md\n"
    )
    assert broken_links(document) == [
        "b.md: no such file",
        "c.png: no such file",
        "a.md#elsewhere: no such heading",
        "e.md: no such file",
    ]


def test_no_file_names_a_path_of_a_machine() -> None:
    found = []
    for path in FILES:
        data = path.read_bytes()
        if b"\0" in data:
            continue  # a picture
        for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_paths_of_machines_are_found() -> None:
    name = "work"  # spelled so that this file does not contain what it looks for
    for text in (f"cd /{name}/main", f'"/{name}"', f"(/{name}/x.py)"):
        assert MACHINE_PATH.search(text)
    for text in ("https://example.org/home/x", "python/work/a", "$HOME/work/", "a/root/b"):
        assert not MACHINE_PATH.search(text)


def test_the_two_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    readme = (ROOT / "README.md").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in readme
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
