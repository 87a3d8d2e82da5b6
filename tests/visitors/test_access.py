"""Who is an operator, how one becomes one, and how often a visitor may ask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlora_demo.errors import ConfigError, Forbidden, TooMany
from qlora_demo.settings import Limits, Settings
from qlora_demo.visitors.access import SESSION_SECONDS, Access, HubUser
from qlora_demo.visitors.rates import _MOST_KEYS, Rate

HOME = Path("/nowhere")
SPACE = Settings(HOME, space="me/demo", hub_sign_in=True, creator="id-1", operators=("Ada",))


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("settings", "role"),
    [
        (Settings(HOME), "operator"),
        (Settings(HOME, password="correct horse"), "visitor"),
        (Settings(HOME, operators=("ada",)), "visitor"),
        (Settings(HOME, space="me/demo"), "visitor"),
        (Settings(HOME, shared=True), "visitor"),
        *((Settings(HOME, host=host), "operator") for host in ("localhost", "127.0.0.2", "::1", "[::1]")),
        *((Settings(HOME, host=host), "visitor") for host in ("0.0.0.0", "::", "10.0.0.9", "my-box", "")),
    ],
)
def test_everyone_is_an_operator_only_where_nothing_else_is_asked_for(settings: Settings, role: str) -> None:
    assert Access(settings).identify("127.0.0.1").role == role
    assert Access(settings).identify("10.0.0.1").role == "visitor"


@pytest.mark.parametrize(
    ("settings", "name", "answers"),
    [
        *((Settings(HOME), name, True) for name in ("127.0.0.1", "localhost", "::1")),
        *((Settings(HOME), name, False) for name in ("evil.example", "127.0.0.1.evil.example", "10.0.0.9", "")),
        (Settings(HOME, password="correct horse"), "demo.example", True),
        (Settings(HOME, space="me/demo"), "me-demo.hf.space", True),
    ],
)
def test_where_everyone_is_an_operator_only_names_of_this_machine_are_answered_to(
    settings: Settings, name: str, answers: bool
) -> None:
    assert Access(settings).answers_to(name) is answers


def test_who_was_sent_by_another_site_is_a_visitor_and_told_so() -> None:
    access = Access(Settings(HOME))
    sent = access.identify("127.0.0.1", own=False)
    assert sent.role == "visitor"
    with pytest.raises(Forbidden, match="only operators may do this; ask from the app's own page on this machine"):
        access.require(sent, "operator")


def test_a_visitor_is_told_what_to_do_and_an_operator_may() -> None:
    access = Access(Settings(HOME, password="correct horse"))
    visitor = access.identify("10.0.0.1")
    access.require(visitor, "visitor")
    with pytest.raises(Forbidden, match="you are a visitor, and only operators may do this; sign in at the top"):
        access.require(visitor, "operator")
    operator = access.identify("10.0.0.1", access.sign_in("correct horse", "10.0.0.1"))
    access.require(operator, "operator")


def test_a_session_is_unguessable_ends_and_can_be_ended() -> None:
    clock = Clock()
    access = Access(Settings(HOME, password="correct horse"), clock)
    first, second = (access.sign_in("correct horse", "a") for _ in range(2))
    assert len({first, second}) == 2 and len(first) >= 43
    assert access.identify("b", first).role == "operator"
    for other in ("", first[:-1], "correct horse"):
        assert access.identify("b", other).role == "visitor"
    access.sign_out(first)
    assert [access.identify("b", one).role for one in (first, second)] == ["visitor", "operator"]
    clock.seconds += SESSION_SECONDS + 1
    assert access.identify("b", second).role == "visitor"


@pytest.mark.parametrize("password", ["", "correct", "correct horse ", "Correct horse", "\udc80"])
def test_a_wrong_password_lets_nobody_in(password: str) -> None:
    with pytest.raises(ConfigError, match="password: it is wrong"):
        Access(Settings(HOME, password="correct horse")).sign_in(password, "a")


def test_where_no_password_is_set_none_is_right() -> None:
    with pytest.raises(ConfigError, match="password: it is wrong"):
        Access(SPACE).sign_in("", "a")


def test_guessing_is_slowed_down_for_each_address_and_the_right_password_waits_too() -> None:
    clock = Clock()
    access = Access(Settings(HOME, password="correct horse", limits=Limits(sign_ins=3)), clock)
    for _ in range(3):
        with pytest.raises(ConfigError):
            access.sign_in("guess", "2001:db8::1")
    with pytest.raises(TooMany, match=r"sign-in \(QLORA_DEMO_SIGN_INS\): 3 in a minute is the most; try again in 60 s"):
        access.sign_in("correct horse", "2001:db8::ffff")  # the same household
    access.sign_in("correct horse", "10.0.0.2")
    clock.seconds += 61
    access.sign_in("correct horse", "2001:db8::1")


@pytest.mark.parametrize(
    ("user", "operator"),
    [
        (HubUser("id-1", "maker"), True),
        (HubUser("id-2", "ADA"), True),
        (HubUser("id-3", "adam"), False),
        (HubUser("", ""), False),
    ],
)
def test_the_hub_makes_operators_of_those_named_and_of_the_space_s_creator(user: HubUser, operator: bool) -> None:
    access = Access(SPACE)
    session = access.sign_in_from_hub(user, "hub-token")
    assert bool(session) == operator
    found = access.identify("a", session)
    assert (found.role, found.name, found.token) == (
        ("operator", user.name, "hub-token") if operator else ("visitor", "", "")
    )
    assert "hub-token" not in repr(found)


def test_without_a_creator_nobody_is_it() -> None:
    assert Access(replace(SPACE, creator="")).sign_in_from_hub(HubUser("", "x"), "t") == ""


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (Settings(HOME), ""),
        (SPACE, ""),
        (replace(SPACE, operators=(), creator=""), "QLORA_DEMO_OPERATORS names nobody"),
        (Settings(HOME, space="me/demo"), "QLORA_DEMO_PASSWORD is not set and nobody can sign in with Hugging Face"),
        (Settings(HOME, operators=("ada",)), "nobody can sign in with Hugging Face"),
        (Settings(HOME, space="me/demo", password="correct horse"), ""),
        (Settings(HOME, host="0.0.0.0"), "strangers may reach 0.0.0.0 and QLORA_DEMO_PASSWORD is not set. Set it"),
        (Settings(HOME, host="0.0.0.0", password="correct horse"), ""),
        (Settings(HOME, host="0.0.0.0", operators=("ada",)), "nobody can sign in with Hugging Face"),
    ],
)
def test_what_keeps_everyone_from_being_an_operator_is_told(settings: Settings, why: str) -> None:
    trouble = Access(settings).trouble
    assert why in trouble and bool(trouble) == bool(why)


def test_requests_are_counted_by_page_by_address_and_in_all() -> None:
    clock = Clock()
    access = Access(
        Settings(HOME, space="x/y", limits=Limits(visitor_requests=2, address_requests=3, all_requests=5)), clock
    )

    def ask(address: str, page: str) -> None:
        access.spend(replace(access.identify(address), page=page))

    ask("1.1.1.1", "a")
    ask("1.1.1.1", "a")
    with pytest.raises(TooMany, match=r"requests \(QLORA_DEMO_VISITOR_REQUESTS\): 2 in a minute"):
        ask("1.1.1.1", "a")
    ask("1.1.1.1", "b")
    with pytest.raises(TooMany, match="QLORA_DEMO_ADDRESS_REQUESTS"):
        ask("1.1.1.1", "c")
    ask("2.2.2.2", "a")
    ask("3.3.3.3", "a")
    with pytest.raises(TooMany, match="QLORA_DEMO_ALL_REQUESTS"):
        ask("4.4.4.4", "a")
    clock.seconds += 61
    ask("1.1.1.1", "a")


def test_operators_are_not_counted() -> None:
    access = Access(Settings(HOME, limits=Limits(visitor_requests=1)))
    for _ in range(3):
        access.spend(access.identify("127.0.0.1"))
    assert access.requests == 0


def test_the_memory_for_counting_is_bounded() -> None:
    rate = Rate(1, Clock())
    for key in range(_MOST_KEYS + 10):
        rate.spend(str(key), "x")
    assert len(rate._spent) == _MOST_KEYS
    with pytest.raises(TooMany):
        rate.spend(str(_MOST_KEYS), "x")
