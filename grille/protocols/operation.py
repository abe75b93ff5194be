"""What a statement or a message asks for, in words that every protocol shares.

An `Operation` is the only thing about a statement that the policy engine sees.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Access = Literal["read", "insert", "update", "delete", "lock", "put", "get", "browse", "inquire"]
"""Of a relation of a database the first five, of a queue the last four."""


class RelationUse(msgspec.Struct, frozen=True, order=True):
    """One use of one governed relation.

    A relation that is read and written by one statement has one entry for each access.
    """

    schema: str
    """Of a queue: its queue manager."""
    name: str
    access: Access
    columns: tuple[str, ...] = ()
    """Columns read (access ``read``) or written (``insert``, ``update``), sorted."""
    predicates: tuple[str, ...] = ()
    """Columns that take part in WHERE, ON, HAVING, ORDER BY or GROUP BY, sorted."""

    @property
    def qualified(self) -> str:
        """``schema.name``, the key under which a decision speaks of this relation."""
        return f"{self.schema}.{self.name}"


class Operation(msgspec.Struct, frozen=True):
    """What one statement does: its action, the relations it touches, the functions it calls."""

    action: str
    """``select``, ``insert``, ``update``, ``delete``; ``connect`` for a session as a whole; ``passthrough`` for a
    `NotUnderstood` statement; ``put``, ``get``, ``browse``, ``inquire`` of a queue.  Session statements never reach the
    policy."""
    relations: tuple[RelationUse, ...] = ()
    """Sorted and without duplicates."""
    functions: tuple[str, ...] = ()
    """Qualified names (``pg_catalog.count``), sorted and without duplicates."""


class NotUnderstood(Operation, frozen=True):
    """A statement of an isolated session that enforcement does not understand: may it go on unchanged?"""

    statement: str = ""
    """Its command tag (``CREATE TABLE``, ``SELECT``); empty for a text that could not be parsed."""
    control: str = ""
    """The control that refuses it."""
