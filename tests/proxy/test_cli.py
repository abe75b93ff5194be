"""The command line, as a user runs it."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from grille import __version__
from grille.proxy.cli import parser


def grille(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "grille", *arguments], capture_output=True, text=True, timeout=60, cwd=cwd, check=False
    )


COMMANDS = [
    ["demo"], ["serve"], ["check"], ["explain"], ["policy"], ["policy", "build"], ["policy", "test"],
    ["policy", "lint"], ["policy", "diff"], ["audit"], ["audit", "verify"], ["audit", "show"], ["audit", "head"],
    ["version"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_teaches_itself(command: list[str]) -> None:
    done = grille(*command, "--help")
    assert done.returncode == 0
    assert "example:\n  grille " + " ".join(command) in done.stdout
    assert done.stderr == ""


def test_help_names_every_command_and_imports_little() -> None:
    done = grille("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n    {command[0]} " in done.stdout
    script = "import sys; from grille.proxy.cli import parser; parser().format_help(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert not {"asyncio", "ssl", "msgspec", "wasmtime", "numpy", "cryptography"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["serve"],
        ["check"],
        ["explain", "--config", "x.toml", "SELECT 1"],
        ["audit"],
        ["policy"],
        ["policy", "build", "policy"],
        ["policy", "lint"],
        ["policy", "diff", "old.tar.gz", "new.tar.gz"],
        ["audit", "verify"],
        ["audit", "head", "."],
        ["audit", "show", "--decision", "maybe"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_2_with_one_message(arguments: list[str]) -> None:
    done = grille(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: grille")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["serve"], ["check"], ["explain", "--as", "spiffe://a/b", "SELECT 1"]], ids=str)
def test_a_bad_configuration_is_exit_2_and_one_line_a_problem(command: list[str], tmp_path: Path) -> None:
    file = tmp_path / "grille.toml"
    done = grille(command[0], "--config", str(file), *command[1:])
    assert done.returncode == 2
    assert done.stderr == (
        f"grille: {file}: cannot be read (No such file or directory). Give the path of a configuration file.\n"
    )
    file.write_text("[listener]\nport = 'x'\n")
    done = grille(command[0], "--config", str(file), *command[1:])
    assert done.returncode == 2
    assert done.stderr == (
        f'grille: {file}: listener.port = "x": expected int, got str. Write a whole number without quotes.\n'
    )
    assert done.stdout == ""


@pytest.mark.parametrize("part", [["verify"], ["show"], ["head", "--out", "x"]], ids=str)
def test_audit_commands_need_a_directory(part: list[str], tmp_path: Path) -> None:
    done = grille("audit", part[0], str(tmp_path / "absent"), *part[1:])
    assert done.returncode == 2
    assert "is not a directory" in done.stderr
    assert done.stderr.count("\n") == 1


def test_version() -> None:
    done = grille("version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"grille {__version__} (")


def test_a_closed_pipe_is_no_stack_trace() -> None:
    script = f"{sys.executable} -m grille --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr


def test_the_reference_page_has_every_command_and_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    sections = dict(part.split("`\n", 1) for part in page.split("\n## `grille ")[1:])

    def compare(made: argparse.ArgumentParser, name: str) -> None:
        children = [action for action in made._actions if isinstance(action, argparse._SubParsersAction)]
        for action in children:
            for child, child_parser in action.choices.items():
                compare(child_parser, f"{name} {child}".strip())
        if not children:
            options = {option for action in made._actions for option in action.option_strings} - {"-h", "--help"}
            assert set(re.findall(r"`(--[a-z-]+)", sections.pop(name))) == options, name

    compare(parser(), "")
    assert sections == {}
