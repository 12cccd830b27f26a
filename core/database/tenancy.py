"""The tenant that database work is for: a context variable nobody can forget to pass (law 8)."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_TENANT: ContextVar[str | None] = ContextVar("headrace_tenant", default=None)


class TenantRequiredError(LookupError):
    """Role `app` was used without a tenant. Wrap the work in `with tenant("org_…"):`."""

    def __init__(self) -> None:
        super().__init__("database role `app` needs a tenant: wrap the work in `with tenant(id):`")


@contextmanager
def tenant(tenant_id: str) -> Iterator[None]:
    """Do the work inside for one tenant.

    Raises:
        ValueError: for an empty tenant, which row-level security would match with nothing.
    """
    if not tenant_id:
        raise ValueError("the tenant id is empty")
    token = _TENANT.set(tenant_id)
    try:
        yield
    finally:
        _TENANT.reset(token)


def current_tenant() -> str:
    """Raises: TenantRequiredError."""
    tenant_id = _TENANT.get()
    if tenant_id is None:
        raise TenantRequiredError
    return tenant_id
