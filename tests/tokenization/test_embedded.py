import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.provider import TokenizationError, TokenRequest, Unfit
from grille.tokenization.transformation import Key, TemplateError, Transformation

SSN = Transformation("ssn", "fpe", "customer-ssn", "digits", template=r"(\d{3})-(\d{2})-(\d{4})")
TAX = Transformation("tax", "fpe", "customer-ssn", "digits", template=r"(\d{9})")
CARD = Transformation("card", "fpe", "card", "digits", template=r"(\d{16})")
EMAIL = Transformation("email", "siv", "email", "text")
KEYS = [Key("digits", 1, bytes(range(32))), Key("text", 1, bytes(range(64)))]

REASONS = {
    "the value does not fit the template",
    "the stored value does not fit the template",
    "the value is not valid Unicode text",
    "the stored value is not a token",
}


@pytest.fixture(scope="module")
def provider():
    return EmbeddedProvider([SSN, TAX, CARD, EMAIL], KEYS)


async def test_a_mixed_batch_is_answered_in_order(provider):
    batch = [
        TokenRequest("email", "a@bank.example"),
        TokenRequest("ssn", "123-45-6789"),
        TokenRequest("card", "4000123456789010"),
        TokenRequest("ssn", "no"),
        TokenRequest("email", "b@bank.example"),
        TokenRequest("ssn", "987-65-4321"),
    ]
    tokens = await provider.encode(batch)
    assert isinstance(tokens[3], Unfit)
    back = await provider.decode(
        [
            TokenRequest(request.transformation, token if isinstance(token, str) else "no")
            for request, token in zip(batch, tokens, strict=True)
        ]
    )
    assert [reply for reply in back if isinstance(reply, str)] == [batch[i].value for i in (0, 1, 2, 4, 5)]
    assert isinstance(back[3], Unfit)
    alone = [(await provider.encode([request]))[0] for request in batch]
    assert alone == list(tokens)
    assert len({token for token in tokens if isinstance(token, str)}) == 5


async def test_one_token_domain_joins_two_columns(provider):
    ssn, tax = await provider.encode([TokenRequest("ssn", "123-45-6789"), TokenRequest("tax", "123456789")])
    assert ssn.replace("-", "") == tax


async def test_large_batches(provider):
    values = [f"{number:09d}" for number in range(0, 5_000_000, 1009)]
    tokens = await provider.encode([TokenRequest("tax", value) for value in values])
    assert len(set(tokens)) == len(values)
    assert await provider.decode([TokenRequest("tax", token) for token in tokens]) == values
    assert list(await provider.encode([TokenRequest("tax", values[7])])) == [tokens[7]]


@given(st.lists(st.tuples(st.sampled_from(["ssn", "tax", "card", "email"]), st.text(max_size=20)), max_size=20))
async def test_any_text_gets_an_answer(provider, items):
    batch = [TokenRequest(name, value) for name, value in items]
    for replies in (await provider.encode(batch), await provider.decode(batch)):
        assert len(replies) == len(batch)
        for request, reply in zip(batch, replies, strict=True):
            if isinstance(reply, Unfit):
                assert reply.reason in REASONS, request


async def test_an_unknown_transformation_is_an_error(provider):
    for method in (provider.encode, provider.decode):
        with pytest.raises(TokenizationError, match="'iban'"):
            await method([TokenRequest("ssn", "123-45-6789"), TokenRequest("iban", "secret")])


async def test_an_empty_batch(provider):
    assert list(await provider.encode([])) == []


@pytest.mark.parametrize(
    ("transformations", "keys", "why"),
    [
        ([SSN, SSN], KEYS, "'ssn' is given twice"),
        ([SSN], [], "'digits' that is not there"),
        ([SSN], [KEYS[0], KEYS[0]], "'digits' is given twice"),
        ([SSN], [Key("digits", 0, bytes(32))], "versions begin at 1"),
        ([SSN], [Key("digits", 1, bytes(64))], "64 bytes; an fpe key has 32"),
        ([EMAIL], [Key("text", 1, bytes(32))], "32 bytes; a siv key has 64"),
        ([Transformation("x", "fpe", "", "digits", template=r"(\d{9})")], KEYS, "empty token domain"),
        ([SSN, Transformation("x", "fpe", "customer-ssn", "other", template=r"(\d{9})")],
         [*KEYS, Key("other", 1, bytes(32))], "'ssn' and 'x' share the token domain"),
        ([SSN, Transformation("x", "siv", "customer-ssn", "text")], KEYS, "differ in kind"),
        ([SSN, Transformation("x", "fpe", "customer-ssn", "digits", "alphanumeric", r"([0-9A-Za-z]{9})")], KEYS,
         "differ in kind, alphabet"),
    ],
)  # fmt: skip
def test_bad_configurations_are_refused(transformations, keys, why):
    with pytest.raises(ValueError, match=why):
        EmbeddedProvider(transformations, keys)


def test_template_errors_name_the_transformation():
    with pytest.raises(TemplateError, match="'x': siv"):
        EmbeddedProvider([Transformation("x", "siv", "d", "text", template=r"(\d{9})")], KEYS)
    with pytest.raises(TemplateError, match="'x': the template has no group"):
        EmbeddedProvider([Transformation("x", "fpe", "d", "digits")], KEYS)


def test_nothing_shows_key_bytes(provider):
    assert repr(provider) == "EmbeddedProvider(ssn, tax, card, email)"
    assert "secret" not in repr(TokenRequest("ssn", "secret"))
