"""Several providers as one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from grille.tokenization.joined import JoinedProvider
from grille.tokenization.provider import TokenizationError, TokenRequest, Unfit


class Marks:
    """Answers with a mark, and remembers what it was asked."""

    def __init__(self, mark: str, away: bool = False) -> None:
        self.mark = mark
        self.away = away
        self.asked: list[list[str]] = []

    async def encode(self, batch: Sequence[TokenRequest]) -> Sequence[str | Unfit]:
        self.asked.append([request.value for request in batch])
        if self.away:
            raise TokenizationError("away")
        return [f"{self.mark}{request.value}" for request in batch]

    decode = encode


def requests(*pairs: str) -> list[TokenRequest]:
    return [TokenRequest(*pair.split(":")) for pair in pairs]


async def test_each_transformation_has_its_provider_and_answers_are_in_order() -> None:
    one, two = Marks("1"), Marks("2")
    joined = JoinedProvider({"a": one, "b": two, "c": one})
    batch = requests("a:x", "b:y", "c:z", "b:w")
    assert await joined.encode(batch) == ["1x", "2y", "1z", "2w"]
    assert await joined.decode(batch) == ["1x", "2y", "1z", "2w"]
    assert (one.asked, two.asked) == ([["x", "z"]] * 2, [["y", "w"]] * 2)


async def test_one_that_is_away_refuses_only_what_needs_it() -> None:
    joined = JoinedProvider({"a": Marks("1"), "b": Marks("2", away=True)})
    with pytest.raises(TokenizationError):
        await joined.encode(requests("a:x", "b:y"))
    assert await joined.encode(requests("a:x")) == ["1x"]


async def test_a_transformation_that_is_not_there_is_an_error() -> None:
    with pytest.raises(TokenizationError, match="'c' is not configured"):
        await JoinedProvider({"a": Marks("1")}).decode(requests("c:x"))


async def test_an_empty_batch_asks_nobody() -> None:
    one = Marks("1")
    assert await JoinedProvider({"a": one}).encode([]) == []
    assert one.asked == []
