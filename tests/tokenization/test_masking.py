import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.tokenization.masking import DEFAULT, MASKS, TEXT_ONLY, apply

CASES = [
    ("null", "123-45-6789", None),
    ("null", "", None),
    ("last4", "123-45-6789", "***-**-6789"),
    ("last4", "4000 1234 5678 9012", "**** **** **** 9012"),
    ("last4", "4000123456789012", "************9012"),
    ("last4", "12345678", "****5678"),
    ("last4", "1234567", "*******"),
    ("last4", "12-4", "**-*"),
    ("last4", "a\nb", "***"),
    ("last4", "\u00e9\u00e9\u00e9\u00e9wxyz", "****wxyz"),
    ("last4", "", ""),
    ("first1", "Anna", "A***"),
    ("first1", "\U0001f600x", "\U0001f600***"),
    ("first1", "A", "***"),
    ("first1", "", "***"),
    ("email", "jane.doe@bank.example", "j***@bank.example"),
    ("email", "j@bank.example", "j***@bank.example"),
    ("email", "@bank.example", "***"),
    ("email", "jane@", "***"),
    ("email", "jane@x@y", "***"),
    ("email", "jane", "***"),
    ("email", "", "***"),
    ("email", "a\n@b\n", "a***@b\n"),
    ("redact", "anything", "[redacted]"),
    ("redact", "", "[redacted]"),
]


@pytest.mark.parametrize(("name", "value", "expected"), CASES)
def test_masks(name, value, expected):
    assert apply(name, value) == expected


def test_the_set_is_closed():
    assert set(MASKS) == {"null", "last4", "first1", "email", "redact"}
    assert set(MASKS) - TEXT_ONLY == {"null"}
    assert DEFAULT in MASKS
    assert DEFAULT not in TEXT_ONLY


@pytest.mark.parametrize("name", MASKS)
def test_null_stays_null(name):
    assert apply(name, None) is None


@pytest.mark.parametrize("name", ["", "Last4", "none", "clear", "last5"])
def test_an_unknown_mask_is_an_error_even_for_null(name):
    with pytest.raises(KeyError):
        apply(name, "x")
    with pytest.raises(KeyError):
        apply(name, None)


@given(st.text(max_size=40))
def test_last4_shows_at_most_half(value):
    masked = apply("last4", value)
    assert masked is not None
    assert len(masked) == len(value)
    hidden = value if len(value) < 8 else value[:-4]
    assert not set(masked[: len(hidden)]) - set("* -")


@given(st.text(max_size=40), st.text(max_size=40))
def test_email_shows_one_character_of_the_local_part(local, other):
    first = apply("email", f"x{local}@bank.example")
    assert first == ("***" if "@" in local else "x***@bank.example")
