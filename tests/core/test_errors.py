"""The error tree, and errors that a peer reports by name."""

import pytest

from isthmus.core import errors
from isthmus.core.errors import Bug, CapacityExceeded, IsthmusError, Lost, Rejected, error_named
from isthmus.core.units import Duration

EVERY = [getattr(errors, name) for name in errors.__all__ if name != "error_named"]
KINDS = (Bug, Rejected, Lost)
LEAVES = [kind for kind in EVERY if kind not in (IsthmusError, *KINDS)]


@pytest.mark.parametrize("kind", LEAVES)
def test_an_error_is_of_exactly_one_of_the_three_kinds(kind):
    assert sum(issubclass(kind, parent) for parent in KINDS) == 1
    assert kind.__doc__


@pytest.mark.parametrize("kind", [*LEAVES, Rejected, Lost])
def test_an_error_that_a_peer_reports_is_the_same_error_here(kind):
    error = kind("blocks: got 9, wanted at most 8", field="blocks")
    found = error_named(error.code, str(error), field=error.field)
    assert type(found) is kind
    assert (str(found), found.field, found.code) == (str(error), "blocks", kind.__name__)


@pytest.mark.parametrize(
    "code", ["", "NoSuchError", "Exception", "KeyError", "bug", "__class__", "error_named", "Bug", "IsthmusError"]
)
def test_a_code_that_is_not_known_here_and_a_peers_own_bug_are_losses(code):
    found = error_named(code, "blew up", field="somewhere")
    assert type(found) is Lost
    assert str(found) == f"{code}: blew up"
    assert found.field == "somewhere"


def test_a_kind_of_bug_is_a_loss_too():
    class LedgerBug(Bug):
        pass

    assert type(error_named("LedgerBug", "the sum is wrong")) is Lost


@pytest.mark.parametrize("kind", [kind for kind in EVERY if issubclass(kind, Rejected)])
def test_what_is_rejected_has_a_status_of_http(kind):
    assert 400 <= kind.http_status < 600


def test_no_room_says_when_to_ask_again():
    error = CapacityExceeded("no room", field="blocks", retry_after=Duration.of_seconds(1))
    assert error.retry_after == Duration.of_seconds(1)
    assert error.http_status == 503
    assert error_named("CapacityExceeded", "no room").retry_after is None


def test_an_error_without_a_field_names_none():
    assert Lost("gone").field == ""
