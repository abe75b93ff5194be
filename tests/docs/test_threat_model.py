"""The threat model and the code name the same controls, and a test exercises each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from grille.controls import CONTROLS

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/explanation/threat-model.md").read_text(encoding="utf-8")
ID = re.compile(r"\b(?:ID|WP|ST|AC|RO|CO|TK|AU|UP|OP)-\d\d\b")
OF_POLICIES = {"AC-07"}
"""Controls that the demo's bundle has beside those of the product."""


class Control(NamedTuple):
    """One section of the page."""

    id: str
    sentence: str
    fields: dict[str, str]


def sections() -> list[Control]:
    found = []
    for text in re.split(r"^#### ", PAGE.partition("## Controls")[2].partition("\n## ")[0], flags=re.MULTILINE)[1:]:
        heading, _, body = text.partition("\n")
        anchor, identifier, sentence = re.fullmatch(r'<a id="([^"]+)"></a>(\S+): (.*)', heading).groups()  # type: ignore[union-attr]
        assert anchor == identifier.lower()
        body = re.split(r"^### ", body, flags=re.MULTILINE)[0]
        fields = dict(re.findall(r"^- ([A-Z][A-Za-z ]*): (.*)$", body, re.MULTILINE))
        found.append(Control(identifier, sentence, fields))
    return found


SECTIONS = sections()
each_control = pytest.mark.parametrize("control", SECTIONS, ids=lambda control: control.id)


def sources(*roots: str) -> dict[Path, str]:
    paths = [path for root in roots for path in (ROOT / root).rglob("*") if path.suffix in (".py", ".rego", ".json")]
    return {path: path.read_text(encoding="utf-8") for path in paths}


def test_every_control_of_the_code_is_explained_in_its_own_words() -> None:
    explained = {control.id: control.sentence for control in SECTIONS}
    assert len(explained) == len(SECTIONS)
    assert {name: text for name, text in explained.items() if name not in OF_POLICIES} == CONTROLS
    assert set(explained) == set(CONTROLS) | OF_POLICIES


def test_every_id_in_the_code_is_a_control() -> None:
    for path, text in sources("grille").items():
        known = set(CONTROLS) | OF_POLICIES
        assert set(ID.findall(text)) <= known, path


def test_only_policies_name_controls_of_policies() -> None:
    rego = {name for path, text in sources("grille").items() if path.suffix == ".rego" for name in ID.findall(text)}
    assert rego - set(CONTROLS) == OF_POLICIES


def test_every_id_in_the_documentation_is_a_control() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        assert set(ID.findall(page.read_text(encoding="utf-8"))) <= set(CONTROLS) | OF_POLICIES, page


@each_control
def test_every_control_says_all_of_it(control: Control) -> None:
    assert list(control.fields) == ["Stops", "STRIDE", "Enforced in", "Tests", "Left"]
    stride, _, attack = control.fields["STRIDE"].partition(" ATT&CK: ")
    assert set(stride.rstrip(".").split(", ")) <= set("STRIDE")
    techniques = attack.rstrip(".").split(", ")
    named = dict(re.findall(r"^\| (T\d{4}(?:\.\d{3})?) \| (.+) \|$", PAGE, re.MULTILINE))
    assert techniques == ["none"] or set(techniques) <= set(named)


def test_every_technique_is_named_once_and_used() -> None:
    body, _, rest = PAGE.partition("## ATT&CK techniques named here")
    named = re.findall(r"^\| (T\d{4}(?:\.\d{3})?) \|", rest, re.MULTILINE)
    assert named == sorted(set(re.findall(r"(?<!\.)\bT\d{4}(?:\.\d{3})?\b", body)))


@each_control
def test_it_is_enforced_where_the_page_says(control: Control) -> None:
    places = re.findall(r"`(grille/[^`]+)` \(([^)]*)\)", control.fields["Enforced in"])
    assert places
    for path, names in places:
        text = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"`([^`]+)`", names):
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", text), f"{name} is not in {path}"


@each_control
def test_a_test_exercises_it(control: Control) -> None:
    """The files that the page names are there, and one of them names the control (the examples: a page does)."""
    named = False
    for path in re.findall(r"`(tests/[^`]+)`", control.fields["Tests"]):
        text = (ROOT / path).read_text(encoding="utf-8")
        if path == "tests/docs/test_examples.py":
            pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
            assert re.search(rf"^```sql .*\bexpect={control.id}\b", pages, re.MULTILINE)
            named = True
        named = named or re.search(rf"\b{control.id}\b", text) is not None
    assert named
