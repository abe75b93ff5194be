"""Queues of the stand-in: order, units of work, expiry, and what a journal keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mq.queues import DEAD_LETTER, MODEL, PERMANENT_MODEL, Message, Queue, Queues, Unit
from tests.mq.wire import Descriptor


def message(
    queues: Queues, text: str, *, persistence: int = 1, priority: int = 0, expires: float | None = None
) -> Message:
    descriptor = Descriptor(
        0, 8, -1, 0, 273, 1208, b"MQSTR   ", priority, persistence, queues.unique(), bytes(24), 0, b" " * 48, b" " * 48,
        b" " * 12, bytes(32), b" " * 32, 28, b" " * 28, b"20260101", b"00000000", b"    ",
    )  # fmt: skip
    return Message(queues.number(), descriptor, text.encode(), expires)


def texts(queue: Queue | int) -> str:
    assert isinstance(queue, Queue)
    return " ".join(each.data.decode() for each in queue.messages)


def named(queues: Queues, name: str) -> Queue:
    found = queues.find(name, "", "")
    assert isinstance(found, Queue)
    return found


def test_what_is_persistent_and_committed_is_there_again(tmp_path: Path) -> None:
    first = Queues("QM1", ("A", "B"), tmp_path / "journal")
    queue, other = named(first, "A"), named(first, "B")
    for text, persistence in (("kept", 1), ("lost", 0), ("taken", 1), ("moved", 1)):
        first.put(queue, message(first, text, persistence=persistence), None)
    first.put(queue, message(first, "never", persistence=1), unfinished := Unit())
    first.get(queue, queue.messages[0], unfinished)
    first.get(queue, next(each for each in queue.messages if each.data == b"taken"), None)
    move = Unit()
    first.get(queue, next(each for each in queue.messages if each.data == b"moved"), move)
    first.put(other, message(first, "arrived"), move)
    first.commit(move)
    first.close()
    again = Queues("QM1", ("A", "B"), tmp_path / "journal")
    assert (texts(named(again, "A")), texts(named(again, "B"))) == ("kept", "arrived")
    assert again.number() > queue.messages[0].number
    again.close()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_commit_never_was(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    first = Queues("QM1", ("A",), path)
    for text in ("one", "two"):
        first.put(named(first, "A"), message(first, text), None)
    first.close()
    path.write_bytes(path.read_bytes()[:-cut])
    second = Queues("QM1", ("A",), path)
    assert texts(named(second, "A")) == "one"
    second.put(named(second, "A"), message(second, "three"), None)
    second.close()
    third = Queues("QM1", ("A",), path)
    assert texts(named(third, "A")) == "one three"
    third.close()


def test_a_damaged_commit_never_was(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Queues("QM1", ("A",), path)
    first.put(named(first, "A"), message(first, "one"), None)
    first.close()
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    second = Queues("QM1", ("A",), path)
    assert texts(named(second, "A")) == ""
    second.close()


def test_what_is_taken_back_returns_to_its_place() -> None:
    queues = Queues("QM1", ("A",), None)
    queue = named(queues, "A")
    for text, priority in (("c", 0), ("a", 9), ("d", 0), ("b", 5)):
        queues.put(queue, message(queues, text, priority=priority), None)
    assert texts(queue) == "a b c d"
    unit = Unit()
    for _ in range(2):
        queues.get(queue, queue.messages[1], unit)
    assert texts(queue) == "a d"
    queues.back(unit)
    assert texts(queue) == "a b c d"
    assert [each.descriptor.backout_count for each in queue.messages] == [0, 1, 1, 0]


def test_expiry(tmp_path: Path) -> None:
    now = 1000.0
    queues = Queues("QM1", ("A",), tmp_path / "journal", lambda: now)
    queue = named(queues, "A")
    queues.put(queue, message(queues, "gone", expires=1001.0), None)
    queues.put(queue, message(queues, "stays"), None)
    queues.expire(queue)
    assert texts(queue) == "gone stays"
    now = 1001.0
    queues.expire(queue)
    assert texts(queue) == "stays"
    queues.close()
    again = Queues("QM1", ("A",), tmp_path / "journal", lambda: now)
    assert texts(named(again, "A")) == "stays"
    again.close()


def test_names(tmp_path: Path) -> None:
    queues = Queues("QM1", ("A", Queue("ALIAS", target="A"), Queue("BROKEN", target="B")), tmp_path / "journal")
    assert named(queues, "ALIAS") is named(queues, "A")
    assert queues.find("BROKEN", "", "") == 2082
    assert queues.find("NO.SUCH", "", "") == 2085
    assert queues.find("A", "OTHER", "") == 2086
    assert isinstance(queues.find("A", "QM1", ""), Queue)
    assert isinstance(queues.find(DEAD_LETTER, "", ""), Queue)
    temporary = queues.find(MODEL, "", "REPLY.*")
    permanent = queues.find(PERMANENT_MODEL, "", "KEPT")
    assert isinstance(temporary, Queue) and isinstance(permanent, Queue)
    assert temporary.name.startswith("REPLY.") and len(temporary.name) == 22
    assert queues.find(PERMANENT_MODEL, "", "KEPT") == 2100
    assert queues.find(MODEL, "", "") == 2011
    queues.put(permanent, message(queues, "p"), None)
    queues.close()
    again = Queues("QM1", ("A",), tmp_path / "journal")
    assert texts(again.find("KEPT", "", "")) == "p"
    assert again.find(temporary.name, "", "") == 2085
    again.delete(named(again, "KEPT"))
    again.close()
    last = Queues("QM1", ("A",), tmp_path / "journal")
    assert last.find("KEPT", "", "") == 2085
    last.close()
