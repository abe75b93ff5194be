"""``python -m tests.conformance ibm-mq-java``: IBM's Java client against the stand-in for a queue manager.

The last line is ``suite=ibm-mq-java direct=P/T``: Grille does not speak this protocol yet, so there is no second run.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.conformance.targets import SuiteError
from tests.conformance.tools import cache, cached, must
from tests.mq.manager import NAME, Manager

SUITE: Final = "ibm-mq-java"
QUEUES: Final = ("A.QUEUE",)
DENIED: Final = ("DENIED.QUEUE",)
_ARTIFACTS: Final = (
    "com.ibm.mq:com.ibm.mq.allclient:9.4.2.0",
    "javax.jms:javax.jms-api:2.0.1",
    "org.json:json:20240303",
)
_SOURCES: Final = Path(__file__).parent / "java"
_SECONDS: Final = 300


def build(directory: Path) -> None:
    """Fetch the client from Maven Central, and compile the cases.  Raises `SuiteError`."""
    for program in ("java", "javac", "mvn"):
        if shutil.which(program) is None:
            raise SuiteError(f"{program} is not installed")
    for artifact in _ARTIFACTS:
        must(
            ["mvn", "-B", "dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={directory}/jars"], directory
        )
    must(
        ["javac", "-nowarn", "-cp", f"{directory}/jars/*", "-d", directory / "classes", *_SOURCES.glob("*.java")],
        directory,
    )


def built() -> Path | None:
    """Where the suite has been built, if it has."""
    return cache() / SUITE if (cache() / SUITE / ".complete").exists() else None


async def run(directory: Path, port: int, scratch: Path, *cases: str) -> dict[str, str]:
    """Outcome by case of both programs against a port, of all cases or of these."""
    return {
        **await _program("Cases", directory, port, scratch, *cases),
        **await _program("JmsCases", directory, port, scratch, *cases),
    }


async def _program(name: str, directory: Path, port: int, scratch: Path, *cases: str) -> dict[str, str]:
    process = await asyncio.create_subprocess_exec(
        "java", "-cp", f"{directory}/classes:{directory}/jars/*", name, NAME, "127.0.0.1", str(port), "APP.SVRCONN",
        *cases, cwd=scratch, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(process.communicate(), _SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    found = re.findall(r"^case (\S+) (ok|FAIL.*)$", out.decode(errors="replace"), re.MULTILINE)
    if not found and not cases:
        raise SuiteError(f"the program printed no case: {out.decode(errors='replace')[-500:]}")
    return dict(found)


def main(scratch: Path) -> int:
    """Build and run; the exit status."""
    try:
        directory = cached(SUITE, build)
        outcomes = asyncio.run(_direct(directory, scratch))
    except SuiteError as error:
        print(error, file=sys.stderr)
        return 2
    for case, outcome in outcomes.items():
        if outcome != "ok":
            print(f"{case}: {outcome}")
    passed = sum(outcome == "ok" for outcome in outcomes.values())
    print(f"suite={SUITE} direct={passed}/{len(outcomes)}")
    return 0 if passed == len(outcomes) else 1


async def _direct(directory: Path, scratch: Path) -> dict[str, str]:
    manager = Manager(QUEUES, denied=DENIED)
    try:
        return await run(directory, await manager.listen(), scratch)
    finally:
        await manager.close()
