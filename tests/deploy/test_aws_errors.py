"""Each mishap at AWS is one sentence that says what to do; steps are undone; waiting ends."""

from __future__ import annotations

import deployable
import pytest

from xlnet_fast.deploy import patience
from xlnet_fast.deploy.aws_errors import AwsError, telling, told_of
from xlnet_fast.deploy.patience import Overtime, wait_for
from xlnet_fast.deploy.undoing import Made
from xlnet_fast.errors import XLNetFastError


def of_botocore(name: str, *bases: type, words: str = "Some words.") -> Exception:
    """An error as botocore's: told apart by the name of its class and its module."""
    kind = type(name, bases or (Exception,), {"__module__": "botocore.exceptions"})
    return kind(words)


@pytest.mark.parametrize(
    ("code", "message", "told"),
    [
        ("AccessDeniedException", "User x is not authorized", "let an administrator allow"),
        ("ExpiredTokenException", "expired", "sign in anew"),
        ("UnrecognizedClientException", "invalid", "check the access key"),
        ("ResourceLimitExceeded", "limit is 0 Instances", "higher quota under Service Quotas"),
        ("NoSuchBucket", "no bucket", "make the bucket first"),
        ("ThrottlingException", "Rate exceeded", "try again later"),
        ("ValidationException", "Could not assume role", "check --role"),
        ("ValidationException", "Cannot create already existing endpoint", "choose another --name"),
        ("ValidationException", "Requested image x not found", "check --image"),
        ("ValidationException", "Could not find endpoint x", "check the name and the region"),
        ("ModelError", "Received server error (500)", "the container's log says why"),
    ],
)
def test_what_aws_answers(code, message, told):
    error = told_of(deployable.ClientError(code, f"{message}."), "creating x")
    assert error is not None
    text = str(error)
    assert text.startswith(f"creating x failed: {message} ({code}); ")
    assert told in text
    assert "\n" not in text
    assert error.answered


def test_an_unknown_answer_keeps_its_words():
    error = told_of(deployable.ClientError("Novelty", "Strange\n  things."), "creating x")
    assert str(error) == "creating x failed: Strange things (Novelty)"
    error = told_of(deployable.ClientError("Novelty", "Strange.", status=500), "creating x")
    assert str(error).endswith("; try again later; what was asked for may have been right")
    assert not error.answered


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("NoCredentialsError", "x failed: there are no credentials; sign in with `aws configure`"),
        ("NoRegionError", "x failed: no region is set; give --region"),
        ("ProfileNotFound", "x failed: Some words; name a profile"),
        ("ParamValidationError", "x failed: a value is of no form that AWS takes (Some words); ch"),
        ("Whatever", "x failed: Some words"),
    ],
)
def test_what_botocore_raises_itself(name, told):
    assert str(told_of(of_botocore(name), "x")).startswith(told)


def test_a_class_is_told_by_the_one_it_derives_from():
    base = type(of_botocore("HTTPClientError"))
    error = of_botocore("EndpointConnectionError", base, words="Could not connect to y")
    assert "AWS cannot be reached (Could not connect to y); check the network" in str(
        told_of(error, "x")
    )


def test_other_errors_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), telling("x"):
        raise ZeroDivisionError
    with pytest.raises(AwsError), telling("x"):
        raise deployable.ClientError("404")
    own = XLNetFastError("y")
    with pytest.raises(XLNetFastError) as caught, telling("x"):
        raise own
    assert caught.value is own


def test_what_is_not_there():
    found = told_of(deployable.ClientError("ValidationException", "Could not find model"), "x")
    assert found is not None
    assert found.not_found
    other = told_of(deployable.ClientError("ValidationException", "Bad name"), "x")
    assert other is not None
    assert not other.not_found


# --- undoing -------------------------------------------------------------------------------------


def failing(code: str, message: str = "No"):
    def undo() -> None:
        with telling("deleting"):
            raise deployable.ClientError(code, message)

    return undo


def test_steps_are_undone_the_last_first():
    made, order, said = Made(), [], []
    for name in "abc":
        made.add(name, lambda name=name: order.append(name))
    assert made.take_back(said.append) == []
    assert order == ["c", "b", "a"]
    assert said == ["taken back: c", "taken back: b", "taken back: a"]
    assert made.take_back(said.append) == []


def test_what_cannot_be_undone_is_named_and_the_rest_is_undone():
    made, order = Made(), []
    made.add("a", lambda: order.append("a"))
    made.add("b", failing("AccessDenied"))
    made.add("c", failing("ValidationException", "Could not find c"))
    (left,) = made.take_back(lambda _: None)
    assert left.startswith("b (deleting failed: No (AccessDenied); ")
    assert order == ["a"]


def test_what_is_in_use_stays():
    made, order = Made(), []
    made.add("a", lambda: order.append("a"))
    made.add("b", failing("AccessDenied"), holds=True)
    made.add("c", lambda: order.append("c"))
    left = made.take_back(lambda _: None)
    assert [one.split(" ")[0] for one in left] == ["b", "a"]
    assert left[1] == "a (in use by b)"
    assert order == ["c"]


@pytest.mark.parametrize(
    ("error", "remembered"),
    [
        (AwsError("no", answered=True), False),
        (AwsError("no answer"), True),
        (KeyboardInterrupt(), True),
    ],
)
def test_a_step_whose_end_is_not_known_is_undone_too(error, remembered):
    made, order = Made(), []

    def do() -> None:
        raise error

    with pytest.raises(type(error)):
        made.make("a", do, lambda: order.append("a"))
    made.take_back(lambda _: None)
    assert order == (["a"] if remembered else [])


# --- waiting -------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def waited(states, minutes=60.0):
    clock, left = Clock(), iter(states)
    state = wait_for(
        "x", lambda: next(left), {"Creating", "Starting"}.__contains__, minutes=minutes,
        sleep=clock.sleep, clock=clock,
    )  # fmt: skip
    return state, clock.now


def test_a_line_is_said_when_something_changes_and_now_and_then(capsys):
    state, took = waited(["Starting"] * 2 + ["Creating"] * 20 + ["InService"])
    assert state == "InService"
    assert took == 22 * patience.INTERVAL_S
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["x: Starting, 0 s", "x: Creating, 30 s"]
    assert 2 < len(lines) <= 5


def test_nothing_is_waited_for_where_nothing_goes_on(capsys):
    assert waited(["Failed"]) == ("Failed", 0)
    assert capsys.readouterr().err == ""


def test_a_wait_has_an_end():
    with pytest.raises(Overtime, match="x is still Creating after 2 minutes"):
        waited(["Creating"] * 100, minutes=2)
