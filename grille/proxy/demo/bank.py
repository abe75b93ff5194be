"""The demo's bank: invented, deterministic data, stored with tokens in place of sensitive values.

Nobody's data: social security numbers begin with 9 (never issued), card numbers with 9999 (no card scheme), e-mail
addresses end in ``.example`` (RFC 2606).
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

from grille.tokenization.provider import TokenProvider, TokenRequest, Unfit
from grille.tokenization.transformation import Transformation

OWNER: Final = "bank_owner"
"""Role that owns the tables; agents never use it."""
ROLE: Final = "grille_app"
"""Role that Grille uses: it may read and change rows, and nothing else."""
DATABASE: Final = "bank"
MAIL_DOMAIN: Final = "mail.example"

TRANSFORMATIONS: Final = (
    Transformation("ssn", "fpe", "bank/ssn", "fpe", "digits", r"(\d{3})-(\d{2})-(\d{4})"),
    Transformation("card", "fpe", "bank/card", "fpe", "digits", r"(\d{16})"),
    Transformation("email", "siv", "bank/email", "siv"),
)
"""How the three sensitive columns of customers become tokens."""

SENSITIVE: Final = {
    "public.customers.ssn": "ssn",
    "public.customers.card_number": "card",
    "public.customers.email": "email",
    "public.customer_export.ssn": "ssn",
    "public.customer_export.card_number": "card",
    "public.customer_export.email": "email",
}
"""Column to transformation."""

SCHEMA: Final = """
CREATE TABLE public.branches (
    branch text PRIMARY KEY,
    name text NOT NULL,
    city text NOT NULL
);
CREATE TABLE public.customers (
    id bigint PRIMARY KEY,
    branch text NOT NULL REFERENCES public.branches,
    name text NOT NULL,
    ssn text NOT NULL,
    email text NOT NULL,
    card_number text NOT NULL,
    created date NOT NULL
);
CREATE TABLE public.accounts (
    id bigint PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES public.customers,
    branch text NOT NULL REFERENCES public.branches,
    kind text NOT NULL,
    balance numeric(14,2) NOT NULL,
    opened date NOT NULL
);
CREATE TABLE public.transactions (
    id bigint PRIMARY KEY,
    account_id bigint NOT NULL REFERENCES public.accounts,
    branch text NOT NULL REFERENCES public.branches,
    amount numeric(14,2) NOT NULL,
    at timestamptz NOT NULL,
    counterparty text NOT NULL
);
CREATE VIEW public.customer_export AS
    SELECT c.id, c.branch, b.name AS branch_name, b.city, c.name, c.ssn, c.email, c.card_number, c.created
    FROM public.customers c JOIN public.branches b ON b.branch = c.branch;
COMMENT ON VIEW public.customer_export IS 'Everything about every customer, for staff of the data office only.';
"""

INDEXES: Final = """
CREATE INDEX ON public.customers (branch);
CREATE UNIQUE INDEX ON public.customers (ssn);
CREATE INDEX ON public.customers (email);
CREATE INDEX ON public.accounts (branch);
CREATE INDEX ON public.accounts (customer_id);
CREATE INDEX ON public.transactions (branch);
CREATE INDEX ON public.transactions (account_id);
ANALYZE public.branches, public.customers, public.accounts, public.transactions;
"""


class Branch(NamedTuple):
    """A row of branches."""

    branch: str
    name: str
    city: str


class Customer(NamedTuple):
    """A row of customers, in clear."""

    id: int
    branch: str
    name: str
    ssn: str
    email: str
    card_number: str
    created: dt.date


class Account(NamedTuple):
    """A row of accounts."""

    id: int
    customer_id: int
    branch: str
    kind: str
    balance: Decimal
    opened: dt.date


class Transaction(NamedTuple):
    """A row of transactions."""

    id: int
    account_id: int
    branch: str
    amount: Decimal
    at: dt.datetime
    counterparty: str


class Bank(NamedTuple):
    """All rows, in clear."""

    branches: tuple[Branch, ...]
    customers: tuple[Customer, ...]
    accounts: tuple[Account, ...]
    transactions: tuple[Transaction, ...]


def make(seed: int = 20261124, *, customers: int = 10_000, accounts: int = 15_000, transactions: int = 20_000) -> Bank:
    """The whole bank.  The same arguments give the same rows."""
    choose = random.Random(seed)
    branches = tuple(
        Branch(f"{number:04d}", f"{_CITIES[number % len(_CITIES)]} {_PLACES[number // len(_CITIES) % len(_PLACES)]}",
               _CITIES[number % len(_CITIES)])
        for number in range(11, 51)
    )  # fmt: skip
    people = tuple(_customer(number, choose, branches) for number in range(1, customers + 1))
    first = dt.date(2019, 1, 1)
    held = []
    for number in range(1, accounts + 1):
        owner = people[number - 1] if number <= len(people) else choose.choice(people)
        kind = choose.choice(("checking", "checking", "savings", "card"))
        balance = Decimal(choose.randrange(-50_000, 2_500_000)) / 100
        opened = max(owner.created, first + dt.timedelta(days=choose.randrange(2500)))
        held.append(Account(number, owner.id, owner.branch, kind, balance, opened))
    begin = dt.datetime(2026, 8, 1, tzinfo=dt.UTC)
    moved = []
    for number in range(1, transactions + 1):
        account = choose.choice(held)
        amount = Decimal(choose.randrange(-200_000, 150_000)) / 100
        at = begin + dt.timedelta(seconds=choose.randrange(100 * 24 * 3600))
        moved.append(Transaction(number, account.id, account.branch, amount, at, choose.choice(_COUNTERPARTIES)))
    return Bank(branches, people, tuple(held), tuple(moved))


def _customer(number: int, choose: random.Random, branches: Sequence[Branch]) -> Customer:
    given, family = choose.choice(_GIVEN), choose.choice(_FAMILY)
    # 7919 has no factor in common with 100 * 49 * 9999, so that no number comes twice.
    serial = number * 7919 % (100 * 49 * 9999)
    area, rest = divmod(serial, 49 * 9999)
    group, last = divmod(rest, 9999)
    account = f"9999{number * 7_654_321 % 10**11:011d}"
    return Customer(
        id=number,
        branch=choose.choice(branches).branch,
        name=f"{given} {family}",
        ssn=f"{900 + area}-{group + 1:02d}-{last + 1:04d}",
        email=f"{given}.{family}.{number}@{MAIL_DOMAIN}".lower(),
        card_number=account + luhn_digit(account),
        created=dt.date(2015, 1, 1) + dt.timedelta(days=choose.randrange(4200)),
    )


def luhn_digit(digits: str) -> str:
    """The check digit of a card number (ISO/IEC 7812-1, annex B)."""
    total = 0
    for position, character in enumerate(reversed(digits)):
        number = int(character) * (2 if position % 2 == 0 else 1)
        total += number if number < 10 else number - 9
    return str(-total % 10)


async def stored_customers(bank: Bank, provider: TokenProvider) -> list[Customer]:
    """The customers as the database gets them: tokens in place of clear values.

    Raises ValueError if a value does not fit its template, TokenizationError if the provider does not answer.
    """
    requests = [
        TokenRequest(name, value)
        for person in bank.customers
        for name, value in (("ssn", person.ssn), ("email", person.email), ("card", person.card_number))
    ]
    tokens: list[str] = []
    for reply in await provider.encode(requests):
        if isinstance(reply, Unfit):
            raise ValueError(reply.reason)
        tokens.append(reply)
    return [
        person._replace(ssn=tokens[place], email=tokens[place + 1], card_number=tokens[place + 2])
        for place, person in zip(range(0, len(tokens), 3), bank.customers, strict=True)
    ]


async def create_roles(connection: Any, password: str) -> None:
    """Create owner and application role, and the database.  `connection` is a superuser's (asyncpg).

    ``password`` is made of letters, digits, hyphen and underscore.
    """
    await connection.execute(f"CREATE ROLE {OWNER} LOGIN")
    await connection.execute(
        f"CREATE ROLE {ROLE} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOBYPASSRLS PASSWORD '{password}'"
    )
    await connection.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER} TEMPLATE template0 ENCODING 'UTF8'")


async def load(connection: Any, bank: Bank, provider: TokenProvider) -> list[Customer]:
    """Create the tables and fill them.  `connection` (asyncpg) is the owner's, to the bank's database.

    Returns the customers as they were stored.
    """
    stored = await stored_customers(bank, provider)
    async with connection.transaction():
        await connection.execute(SCHEMA)
        for table, rows in (
            ("branches", bank.branches),
            ("customers", stored),
            ("accounts", bank.accounts),
            ("transactions", bank.transactions),
        ):
            await connection.copy_records_to_table(table, schema_name="public", records=rows)
        await connection.execute(
            f"""
            REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC;
            GRANT CONNECT ON DATABASE {DATABASE} TO {ROLE};
            REVOKE ALL ON SCHEMA public FROM PUBLIC;
            GRANT USAGE ON SCHEMA public TO {ROLE};
            GRANT SELECT, INSERT, UPDATE, DELETE
                ON public.branches, public.customers, public.accounts, public.transactions TO {ROLE};
            GRANT SELECT ON public.customer_export TO {ROLE};
            """
        )
    await connection.execute(INDEXES)
    return stored


_CITIES: Final = (
    "Albany", "Boston", "Camden", "Dover", "Easton", "Fairfield", "Geneva", "Hartford", "Ithaca", "Jamestown",
    "Kingston", "Lowell", "Milford", "Newport", "Oxford", "Princeton", "Quincy", "Rutland", "Salem", "Trenton",
)  # fmt: skip
_PLACES: Final = ("Main Street", "Market Square", "Station", "Harbour")
_GIVEN: Final = (
    "Aisha", "Ben", "Carla", "David", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Keiko", "Liam", "Maria",
    "Noah", "Olga", "Pedro", "Quinn", "Rosa", "Sami", "Tara", "Umar", "Vera", "Wei", "Xenia", "Yusuf", "Zoe",
)  # fmt: skip
_FAMILY: Final = (
    "Abbott", "Baker", "Chen", "Diaz", "Evans", "Fischer", "Garcia", "Hansen", "Ito", "Jensen", "Khan", "Lopez",
    "Moreau", "Novak", "Okafor", "Patel", "Quist", "Rossi", "Silva", "Tanaka", "Usman", "Varga", "Walsh", "Young",
)  # fmt: skip
_COUNTERPARTIES: Final = (
    "Corner Grocery", "City Water Works", "Northwind Energy", "Blue Line Transit", "Oak Street Pharmacy",
    "Payroll", "Rent", "Summit Insurance", "Cash machine", "Paper Moon Books", "Harbour Cafe", "Wire transfer",
)  # fmt: skip
