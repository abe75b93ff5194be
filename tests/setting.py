"""A configuration whose files, keys and database are in order, for tests that put something out of order."""

from __future__ import annotations

import io
from pathlib import Path

import psycopg

from grille.proxy.check import check
from grille.proxy.config import Config, load
from grille.proxy.demo import bank
from grille.proxy.demo.cluster import Cluster
from grille.proxy.demo.config_files import write_config, write_secrets

TABLE = """
CREATE TABLE customers (id int PRIMARY KEY, ssn text, card_number varchar(32), email text);
CREATE VIEW customer_export AS SELECT * FROM customers
"""


class Setting:
    """A configuration in order, to be changed."""

    def __init__(self, directory: Path, cluster: Cluster, database: str) -> None:
        self.files, self._keys = write_secrets(directory)
        self.password = self.files.password.read_text().strip()
        self.directory = directory
        self.cluster = cluster
        self.database = database
        self.sql(
            f"DO $$ BEGIN CREATE ROLE {bank.ROLE} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
            f"ALTER ROLE {bank.ROLE} PASSWORD '{self.password}'",
            TABLE,
        )

    def sql(self, *statements: str) -> None:
        with psycopg.connect(self.cluster.dsn(self.database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def config(self, *changes: tuple[str, str]) -> Config:
        """The configuration with these texts replaced."""
        write_config(self.files, self._keys, Path(self.cluster.host), self.cluster.port)
        text = self.files.config.read_text()
        for old, new in (('database = "bank"\nrole', f'database = "{self.database}"\nrole'), *changes):
            assert old in text, old
            text = text.replace(old, new)
        self.files.config.write_text(text)
        return load(self.files.config)

    async def check(self, *changes: tuple[str, str]) -> tuple[int, list[str]]:
        """Exit status and lines of ``grille check``."""
        out = io.StringIO()
        status = await check(self.config(*changes), out)
        return status, out.getvalue().splitlines()
