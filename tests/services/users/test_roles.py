"""Roles → scopes."""

import re
from pathlib import Path

import pytest

from services.users.roles import PLATFORM, ROLES, SCOPES, Role, scopes_of, unknown_scopes

SCHEMA = Path(__file__).parents[3] / "deploy/migrations/sql/0001/20_tenancy.sql"


def test_every_role_of_the_schema_has_scopes_and_only_known_ones() -> None:
    [listed] = re.findall(r"check \(role in \(([^)]*)\)\)", SCHEMA.read_text())
    assert {role.strip(" '") for role in listed.split(",")} == set(Role) == set(ROLES)
    assert all(ROLES[role] <= SCOPES.keys() for role in Role)


def test_each_role_can_what_the_lesser_one_can() -> None:
    viewer, developer, admin, owner = (ROLES[role] for role in reversed(Role))
    assert viewer < developer < admin <= owner == set(SCOPES) - PLATFORM


def test_viewer_changes_nothing() -> None:
    assert {scope.split(":")[1] for scope in scopes_of("viewer")} == {"read"}


def test_platform_owner_holds_all_scopes_whatever_the_role() -> None:
    assert scopes_of("viewer", platform_owner=True) == tuple(sorted(SCOPES))


def test_unknown_role_and_scopes() -> None:
    with pytest.raises(ValueError, match="root"):
        scopes_of("root")
    assert unknown_scopes(["usage:read", "b:x", "a:x"]) == ["a:x", "b:x"]
