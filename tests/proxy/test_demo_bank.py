import re
from collections import Counter

import pytest

from grille.proxy.demo import bank as demo
from grille.proxy.demo.run import clear_values
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.provider import TokenRequest
from grille.tokenization.transformation import Key


@pytest.fixture(scope="module")
def bank():
    return demo.make()


@pytest.fixture(scope="module")
def provider():
    return EmbeddedProvider(demo.TRANSFORMATIONS, [Key("fpe", 1, bytes(range(32))), Key("siv", 1, bytes(range(64)))])


def test_the_same_seed_gives_the_same_bank(bank):
    assert demo.make() == bank
    assert demo.make(1, customers=10, accounts=10, transactions=10) != demo.make(
        2, customers=10, accounts=10, transactions=10
    )


def test_sizes_and_keys(bank):
    assert [len(rows) for rows in bank] == [40, 10_000, 15_000, 20_000]
    for rows in bank:
        assert len({row[0] for row in rows}) == len(rows)
    branches = {branch.branch for branch in bank.branches}
    assert "0042" in branches
    assert {person.branch for person in bank.customers} == branches
    people = {person.id: person for person in bank.customers}
    assert all(people[account.customer_id].branch == account.branch for account in bank.accounts)
    accounts = {account.id: account for account in bank.accounts}
    assert all(accounts[moved.account_id].branch == moved.branch for moved in bank.transactions)
    assert all(people[account.customer_id].created <= account.opened for account in bank.accounts)


def test_nobodys_data(bank):
    for column in ("ssn", "email", "card_number"):
        assert max(Counter(getattr(person, column) for person in bank.customers).values()) == 1
    for person in bank.customers:
        assert re.fullmatch(r"9\d\d-[0-4]\d-\d{4}", person.ssn)
        assert person.card_number.startswith("9999")
        assert demo.luhn_digit(person.card_number[:-1]) == person.card_number[-1]
        assert person.email.endswith("@mail.example")


def test_luhn():
    assert demo.luhn_digit("7992739871") == "3"


async def test_stored_customers_hold_tokens_only(bank, provider):
    stored = await demo.stored_customers(bank, provider)
    for column in ("ssn", "email", "card_number"):
        tokens = {getattr(person, column) for person in stored}
        assert len(tokens) == len(stored)
        assert sum(getattr(a, column) == getattr(b, column) for a, b in zip(bank.customers, stored, strict=True)) == 0
    assert [person[:3] for person in stored] == [person[:3] for person in bank.customers]
    back = await provider.decode([TokenRequest("email", person.email) for person in stored])
    assert back == [person.email for person in bank.customers]


async def test_the_search_for_clear_values(provider, tmp_path):
    small = demo.make(customers=50, accounts=50, transactions=1)
    stored = await demo.stored_customers(small, provider)
    clean, dirty = tmp_path / "clean", tmp_path / "dirty"
    clean.write_bytes(b"\0".join(repr(person).encode() for person in stored))
    dirty.write_bytes(b"\1" + small.customers[9].card_number.encode() + b"\2")
    assert clear_values([clean], small, stored)[0] == set()
    assert clear_values([clean, dirty], small, stored)[0] == {small.customers[9].card_number.encode()}
    # a table in clear must not excuse itself
    clean.write_bytes(b"\0".join(repr(person).encode() for person in small.customers))
    found, megabytes = clear_values([clean], small, small.customers)
    assert len(found) == 150
    assert megabytes == pytest.approx(clean.stat().st_size / 1e6)
    # a token that happens to be somebody's number is no leak
    unlucky = [stored[0]._replace(ssn=small.customers[1].ssn), *stored[1:]]
    clean.write_bytes(b"\0".join(repr(person).encode() for person in unlucky))
    assert clear_values([clean], small, unlucky)[0] == set()
