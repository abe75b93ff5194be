"""Queues, messages, units of work and the journal of the stand-in for a queue manager."""

from __future__ import annotations

import bisect
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.mq import selector
from tests.mq.wire import Descriptor

DEAD_LETTER: Final = "SYSTEM.DEAD.LETTER.QUEUE"
MODEL: Final = "SYSTEM.DEFAULT.MODEL.QUEUE"
PERMANENT_MODEL: Final = "PERMANENT.MODEL.QUEUE"
UNKNOWN, UNKNOWN_BASE, UNKNOWN_MANAGER = 2085, 2082, 2086


class Message(msgspec.Struct, eq=False):
    """A message on a queue."""

    number: int
    """Order of arrival; the token that names it to a client is made of it."""
    descriptor: Descriptor
    data: bytes
    expires: float | None = None
    """Time in seconds since the epoch."""
    locked: object = None
    """The handle that browsed it with a lock."""
    properties: dict[str, selector.Value] | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Order on a queue: by priority, then by arrival."""
        return -self.descriptor.priority, self.number

    @property
    def token(self) -> bytes:
        """MQMD's message token: 16 bytes."""
        return self.number.to_bytes(16, "big")

    @property
    def persistent(self) -> bool:
        return self.descriptor.persistence == 1

    def seen(self) -> dict[str, selector.Value]:
        """What a selector sees of it."""
        if self.properties is None:
            self.properties = selector.properties(self.descriptor, self.data)
        return self.properties


class Queue(msgspec.Struct, eq=False):
    """A queue and its attributes, named as in IBM's manual; `target` makes it an alias.

    With `remote` it is the definition of that queue manager's queue `target`: what is put stays here to be sent.
    """

    name: str
    target: str = ""
    remote: str = ""
    max_length: int = 104_857_600
    max_depth: int = 100_000
    inhibit_get: int = 0
    inhibit_put: int = 0
    backout_threshold: int = 0
    backout_queue: str = ""
    default_persistence: int = 0
    default_priority: int = 0
    default_read_ahead: int = 0
    default_put_response: int = 1
    dynamic: str = ""
    """``temporary``, ``permanent``, or nothing for one that was defined."""
    made: float = 0.0
    messages: list[Message] = []
    waiting: list[Any] = []
    """Handles that want a message, the longest waiting first."""
    creator: object = None
    """The handle whose opening made a dynamic queue."""
    inputs: int = 0
    outputs: int = 0
    exclusive: bool = False
    expiring: bool = False
    """Whether a message with an expiry was ever put on it."""
    deleted: bool = False


class Unit(msgspec.Struct):
    """A unit of work: what was put and got under syncpoint."""

    put: list[tuple[Queue, Message]] = []
    got: list[tuple[Queue, Message]] = []


class Journal:
    """A file of what was committed: length, CRC-32 and msgpack of each commit.

    It is written before a commit is answered, without fsync: it survives the end of the process, not of the machine.
    A torn record at the end is as if that commit had never been asked for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        self._file = path.open("ab", buffering=0)

    def read(self) -> Iterator[list[Any]]:
        """Each commit, as changes."""
        data, at = self._path.read_bytes(), 0
        while at + 8 <= len(data):
            size, sum_ = int.from_bytes(data[at : at + 4], "big"), int.from_bytes(data[at + 4 : at + 8], "big")
            record = data[at + 8 : at + 8 + size]
            if len(record) < size or zlib.crc32(record) != sum_:
                break
            yield msgspec.msgpack.decode(record)
            at += 8 + size
        os.truncate(self._path, at)

    def write(self, changes: list[Any]) -> None:
        """Append one commit."""
        record = msgspec.msgpack.encode(changes)
        self._file.write(len(record).to_bytes(4, "big") + zlib.crc32(record).to_bytes(4, "big") + record)

    def close(self) -> None:
        self._file.close()


class Queues:
    """All queues of the queue manager.  ``arrived`` is called with a queue that has a message to give.

    With a journal persistent messages and permanent dynamic queues outlive the process; other messages, and what was
    in a unit of work, do not.
    """

    def __init__(
        self, manager: str, queues: tuple[str | Queue, ...], journal: Path | None, now: Callable[[], float] = time.time
    ) -> None:
        self.manager = manager
        self.now = now
        self.arrived: Callable[[Queue], None] = lambda _queue: None
        self.named: dict[str, Queue] = {}
        self._number = 0
        self._started = int(now())
        own = (DEAD_LETTER, MODEL, PERMANENT_MODEL, "SYSTEM.PROTECTION.POLICY.QUEUE")
        for each in (*own, *queues):
            queue = Queue(each) if isinstance(each, str) else each
            self.named[queue.name] = queue
        self._journal: Journal | None = None
        if journal is not None:
            self._restore(kept := Journal(journal))
            self._journal = kept

    def _restore(self, journal: Journal) -> None:
        for changes in journal.read():
            for kind, name, *rest in changes:
                if kind == "made":
                    self.named[name] = Queue(name, dynamic="permanent")
                elif kind == "deleted":
                    self.named.pop(name, None)
                elif kind == "put" and name in self.named:
                    number, descriptor, data, expires = rest
                    message = Message(number, msgspec.convert(descriptor, Descriptor), data, expires)
                    self._number = max(self._number, number)
                    self._insert(self.named[name], message)
                elif kind == "got" and name in self.named:
                    queue = self.named[name]
                    queue.messages = [message for message in queue.messages if message.number != rest[0]]

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def _write(self, changes: list[Any]) -> None:
        if self._journal is not None and changes:
            self._journal.write(changes)

    def number(self) -> int:
        """One that was not given before."""
        self._number += 1
        return self._number

    def unique(self) -> bytes:
        """24 bytes as the ids of messages and connections are made of."""
        number = self._started.to_bytes(4, "big") + self.number().to_bytes(4, "big")
        return b"AMQ " + self.manager.encode().ljust(12)[:12] + number

    # queues

    def find(self, name: str, manager: str, dynamic: str) -> Queue | int:
        """The queue that an object descriptor means, made anew if that is a model; or the reason why there is none."""
        if manager not in ("", self.manager):
            return UNKNOWN_MANAGER
        queue = self.named.get(name)
        if queue is None:
            return UNKNOWN
        if queue.target and not queue.remote:
            return self.named.get(queue.target, UNKNOWN_BASE)
        if name not in (MODEL, PERMANENT_MODEL):
            return queue
        star = dynamic.find("*")
        made = dynamic if star < 0 else f"{dynamic[: min(star, 32)]}{self._started:08X}{self.number():08X}"
        if not made or made in self.named:
            return 2100 if made else 2011
        kind = "temporary" if name == MODEL else "permanent"
        self.named[made] = Queue(made, dynamic=kind, made=self.now())
        if kind == "permanent":
            self._write([("made", made)])
        return self.named[made]

    def delete(self, queue: Queue) -> None:
        """Take a dynamic queue away, with its messages."""
        del self.named[queue.name]
        queue.deleted = True
        queue.messages.clear()
        if queue.dynamic == "permanent":
            self._write([("deleted", queue.name)])

    # messages

    def expire(self, queue: Queue) -> None:
        """Drop what has expired."""
        if not queue.expiring:
            return
        now = self.now()
        gone = [message for message in queue.messages if message.expires is not None and message.expires <= now]
        for message in gone:
            queue.messages.remove(message)
        self._write([("got", queue.name, message.number) for message in gone if message.persistent])

    def put(self, queue: Queue, message: Message, unit: Unit | None) -> None:
        """Keep a message: at once, or with the commit of the unit."""
        if unit is not None:
            unit.put.append((queue, message))
        else:
            self.commit(Unit([(queue, message)]))

    def get(self, queue: Queue, message: Message, unit: Unit | None) -> None:
        """Take a message: at once, or with the commit of the unit."""
        queue.messages.remove(message)
        if unit is not None:
            unit.got.append((queue, message))
        elif message.persistent:
            self._write([("got", queue.name, message.number)])

    def commit(self, unit: Unit) -> None:
        """End a unit of work; it is empty then."""
        put, got, unit.put, unit.got = unit.put, unit.got, [], []
        self._write(
            [("put", queue.name, m.number, m.descriptor, m.data, m.expires) for queue, m in put if m.persistent]
            + [("got", queue.name, m.number) for queue, m in got if m.persistent]
        )
        for queue, message in put:
            if not queue.deleted:
                self._insert(queue, message)
                self.arrived(queue)

    def back(self, unit: Unit) -> None:
        """Undo a unit of work: what was got returns to its place, with its backout count one higher."""
        got, unit.put, unit.got = unit.got, [], []
        for queue, message in got:
            message.descriptor.backout_count += 1
            self._insert(queue, message)
        for queue, _ in got:
            self.arrived(queue)

    @staticmethod
    def _insert(queue: Queue, message: Message) -> None:
        queue.expiring |= message.expires is not None
        bisect.insort(queue.messages, message, key=lambda each: each.place)
