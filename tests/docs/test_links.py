"""Links between pages lead somewhere, files that pages name exist, and the flow's functions are where it says."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    return re.sub(r"^\s*```.*?^\s*```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    text = prose(page)
    found = set(re.findall(r'<a id="([^"]+)"', text))
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"<[^>]*>|[`*]", "", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.is_file() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "docs"], ids=name)
def test_every_page_is_linked_from_somewhere(page: Path) -> None:
    if page.parent == ROOT:
        return
    linked = {
        (other.parent / target.partition("#")[0]).resolve()
        for other in PAGES
        if other != page
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(other))
    }
    assert page.resolve() in linked


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:grille|tests|docs)/[\w./-]+\.(?:py|rego|md|json|sql|gz))`", text)
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_source_names_only_pages_that_exist() -> None:
    for source in (ROOT / "grille").rglob("*.py"):
        for path in re.findall(r"docs/[\w/-]+\.md", source.read_text(encoding="utf-8")):
            assert (ROOT / path).is_file(), f"{source}: {path}"


def test_the_functions_of_the_flow_are_where_it_says() -> None:
    page = (ROOT / "docs/explanation/how-a-statement-flows.md").read_text(encoding="utf-8")
    rows = page.partition("## The steps")[2].partition("## ")[0].splitlines()
    checked = 0
    for row in rows:
        cells = row.split("|")
        if len(cells) != 6 or "`" not in cells[3]:
            continue
        sources = [(ROOT / "grille" / path).read_text() for path in re.findall(r"`([^`]+\.py)`", cells[3])]
        for function in re.findall(r"`([^`]+)`", cells[4]):
            owner, _, last = function.rpartition(".")
            patterns = [rf"^\s*(async )?def {last}\b"] + ([rf"^class {owner}\b"] if owner else [])
            hit = any(all(re.search(p, text, re.MULTILINE) for p in patterns) for text in sources)
            assert hit, f"{function} is not in {cells[3].strip()}"
            checked += 1
    assert checked > 30
    for path in re.findall(r"`((?:proxy|protocols|policies|tokenization|audit)/[\w./]+\.py|controls\.py)`", page):
        assert (ROOT / "grille" / path).is_file(), path
    for path in re.findall(r"((?:proxy|protocols|policies|tokenization|audit)/[\w./]+\.py)", page):
        assert (ROOT / "grille" / path).is_file(), path


def test_decisions_are_numbered_without_gaps_and_have_three_parts() -> None:
    pages = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text()
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], page.name
        assert text.startswith(f"# {page.name[:4]}: ")
    index = (ROOT / "docs/decisions/README.md").read_text()
    for page in (ROOT / "docs/decisions").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index


# dependencies


def dependencies() -> dict[str, dict[str, str]]:
    """Section of the page -> package -> licence."""
    page = (ROOT / "docs/explanation/dependencies.md").read_text(encoding="utf-8")
    return {
        title: {
            row.split("|")[1].strip(): row.split("|")[3].strip()
            for row in body.splitlines()
            if row.startswith("| ") and not row.startswith("| package")
        }
        for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    }


def test_the_dependencies_page_covers_pyproject_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"To run": project["dependencies"], "For the demo": project["optional-dependencies"]["demo"],
              "Where it is wanted": project["optional-dependencies"]["pkcs11"],
              "For development": project["optional-dependencies"]["dev"]}  # fmt: skip
    for title, packages in wanted.items():
        names = {re.split(r"[=<>;~! ]", package)[0] for package in packages}
        assert set(dependencies()[title]) == names


_LONG = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-2-Clause",
    "BSD 2-Clause License": "BSD-2-Clause",
    "MIT License": "MIT",
}


@pytest.mark.parametrize("package", [each for part in list(dependencies().values())[:3] for each in part])
def test_licences_are_those_of_the_installed_packages(package: str) -> None:
    shown = next(part[package] for part in dependencies().values() if package in part)
    try:
        metadata = importlib.metadata.metadata(package.partition("[")[0])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed")
    stated = metadata.get("License-Expression")
    if stated is None:
        classifiers = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or [] if c.startswith("License")]
        names = {_LONG.get(each, each) for each in (*classifiers, metadata.get("License") or "") if each}
        assert set(re.split(r" (?:OR|AND) ", shown)) == names
    else:
        assert shown == stated
