"""``python -m tests.corpus.capture [SOURCE ..]``: runs ordinary sessions of clients and keeps what they sent.

The applications are in ``applications``; each runs against a database of its own, through `recorder.Recorder`.  What
they sent is kept in ``captured/SOURCE.jsonl``, one execution a line with the number of its session; the database before
it, as pg_dump writes it, in ``captured/shop.sql``.  Needs psql and pg_dump, Java with pgjdbc below ~/.m2, and PyPI.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import psycopg

from grille.proxy.demo.cluster import Cluster, debian_binaries
from tests.corpus.recorder import Recorder

HERE: Final = Path(__file__).parent
CAPTURED: Final = HERE / "captured"
SOURCES: Final = ("psql", "sqlalchemy", "django", "jdbc")


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def _command(source: str, port: int, database: str, django: Path) -> list[str | Path]:
    applications = HERE / "applications"
    match source:
        case "psql":
            url = f"host=127.0.0.1 port={port} user=postgres dbname={database} sslmode=disable"
            return ["psql", "-X", "-q", url, "-f", applications / "session.psql"]
        case "django":
            return [django, applications / "site.py", "127.0.0.1", str(port), database]
        case "jdbc":
            (jar, *_) = sorted((Path.home() / ".m2").rglob("postgresql-42*.jar"), reverse=True)
            url = f"jdbc:postgresql://127.0.0.1:{port}/{database}?user=postgres&sslmode=disable"
            return ["java", "-cp", jar, applications / "Shop.java", url]
        case _:
            return [
                sys.executable,
                applications / "orm.py",
                f"postgresql+psycopg://postgres@127.0.0.1:{port}/{database}",
            ]


def main() -> None:
    """Capture the sources named, or all."""
    binaries = debian_binaries(15)
    assert binaries is not None, "Debian's postgresql-15 is not installed"
    chosen = sys.argv[1:] or SOURCES
    CAPTURED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, Cluster(binaries, tcp=True) as cluster:
        _run(sys.executable, "-m", "venv", f"{scratch}/venv")
        django = Path(scratch) / "venv/bin/python"
        _run(django, "-m", "pip", "install", "--quiet", "django==5.2.19", "psycopg[binary]")
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE shop")
        with psycopg.connect(cluster.dsn("shop")) as connection:
            connection.execute((HERE / "shop.sql").read_text())  # type: ignore[arg-type]
        _run(django, HERE / "applications/site.py", cluster.host, str(cluster.port), "shop", "migrate")
        _run(
            "pg_dump",
            "--no-owner",
            "--no-privileges",
            "--inserts",
            "--file",
            CAPTURED / "shop.sql",
            cluster.dsn("shop"),
        )
        for source in chosen:
            database = f"run_{source.replace('-', '_')}"
            with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {database} TEMPLATE shop")
            recorder = Recorder("127.0.0.1", cluster.port)
            _run(*_command(source, recorder.listens, database, django))
            time.sleep(0.5)  # the relay has everything that a client sent before it ended
            recorder.close()
            lines = [
                json.dumps({"session": number, **execution})
                for number, session in enumerate(recorder.sessions)
                for execution in session
            ]
            (CAPTURED / f"{source}.jsonl").write_text("\n".join(lines) + "\n")
            texts = {json.loads(line)["sql"] for line in lines}
            print(f"{source}: {len(recorder.sessions)} sessions, {len(lines)} executions, {len(texts)} texts")


if __name__ == "__main__":
    main()
