"""The platform's public API as the command line uses it: through the gateway, like anybody else."""

import json
import os
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2

TENANT_SCOPES = (
    "usage:write",
    "usage:read",
    "usage:import",
    "billing:read",
    "agents:read",
    "agents:write",
    "agents:run",
    "memory:read",
    "memory:write",
)
RETRIED = frozenset({408, 429, 502, 503, 504})
"""What a platform that restarts, or asks for patience, answers. Every call made here is safe to repeat."""
SPARE_SECONDS = 60.0
"""An access token is renewed so long before it ends: as long as one call is repeated."""


class ApiError(Exception):
    """The platform refused; `code` is its stable code and the message says what to do."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{detail} ({status} {code})")
        self.status, self.code, self.detail = status, code, detail


class PlatformUnreachableError(Exception):
    """No answer for as long as we were willing to wait."""


class Client:
    """Calls with one credential. Connection loss and 502/503/504/429 are retried for `patience` seconds."""

    def __init__(self, gateway_url: str, bearer: str = "", *, patience: float = 60.0) -> None:
        headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
        self._http = httpx2.Client(base_url=gateway_url, headers=headers, timeout=30.0)
        self._url, self._patience = gateway_url, patience

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **params: str) -> Any:
        return self.call("GET", path, params=params)

    def listed(self, path: str, **params: str) -> list[Any]:
        """The items of a list, all its pages. Raises: as `call`."""
        found, after = list[Any](), dict[str, str]()
        while True:
            page = self.get(path, limit="100", **params, **after)
            found += page["data"]
            if not page["has_more"]:
                return found
            after = {"after": page["last_id"]}

    def text(self, path: str, **params: str) -> str:
        """The answer as text, such as CSV. Raises: as `call`."""
        return self._answer("GET", path, params=params).text

    def post(self, path: str, body: object, **params: str) -> Any:
        """One effect however often the connection breaks: retries carry the same Idempotency-Key."""
        return self.call(
            "POST",
            path,
            params=params,
            content=json.dumps(body).encode(),
            headers={"idempotency-key": str(uuid.uuid4())},
        )

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The decoded JSON answer.

        Raises:
            ApiError: any 4xx or 5xx that repeating does not mend.
            PlatformUnreachableError: `patience` seconds without an answer.
        """
        answer = self._answer(method, path, params=params, content=content, headers=headers)
        return answer.json() if answer.content else None

    def _answer(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        deadline, pause, last = time.monotonic() + self._patience, 0.1, "no answer"
        sent = (
            {"content-type": "application/json", **(headers or {})}
            if content is not None
            else dict(headers or {})
        )
        while True:
            try:
                answer = self._http.request(method, path, params=params, content=content, headers=sent)
            except httpx2.TransportError as error:
                last, wait = str(error) or type(error).__name__, pause
            else:
                if answer.status_code < 400:
                    return answer
                problem = _problem(answer)
                if answer.status_code not in RETRIED:
                    raise problem
                last, wait = str(problem), _retry_after(answer, pause)
            if time.monotonic() + wait > deadline:
                raise PlatformUnreachableError(
                    f"{method} {self._url}{path}: {last}; is it running? See `headrace status`"
                )
            time.sleep(wait)
            pause = min(2.0, pause * 2)


def _problem(answer: httpx2.Response) -> ApiError:
    body: Any = None
    with suppress(ValueError):
        body = answer.json()
    if not isinstance(body, dict):
        body = {}
    return ApiError(
        answer.status_code,
        str(body.get("code", "unknown")),
        str(body.get("detail") or body.get("title") or answer.reason_phrase),
    )


def _retry_after(answer: httpx2.Response, otherwise: float) -> float:
    try:
        return min(30.0, max(0.05, float(answer.headers.get("retry-after", ""))))
    except ValueError:
        return otherwise


class Operator:
    """The owner of an installation, as far as the command line needs: tenants and their keys."""

    def __init__(self, gateway_url: str, email: str, password: str, keys_file: Path) -> None:
        self.gateway_url, self._email, self._password, self._keys_file = (
            gateway_url,
            email,
            password,
            keys_file,
        )
        self._client: Client | None = None
        self._good_until = 0.0

    def client(self) -> Client:
        """Calls as the owner. Logs in where the last login is about to end: an import may take hours, an access
        token lives for minutes. So ask for it anew instead of keeping it."""
        if self._client is None or time.monotonic() >= self._good_until:
            asked = time.monotonic()
            with Client(self.gateway_url) as anonymous:
                answer = anonymous.post(
                    "/api/v1/auth/login", {"email": self._email, "password": self._password}
                )
            if self._client is not None:
                self._client.close()
            self._client = Client(self.gateway_url, answer["access_token"])
            self._good_until = asked + float(answer["expires_in"]) - SPARE_SECONDS
        return self._client

    def find_tenant(self, slug: str) -> str | None:
        """Id of the organisation with this slug."""
        found = self.client().get("/api/v1/organizations", slug=slug)["data"]
        return str(found[0]["id"]) if found else None

    def slug_of(self, tenant_id: str) -> str:
        """Slug of an organisation; the id itself where there is none of that id."""
        try:
            return str(self.client().get(f"/api/v1/organizations/{quote(tenant_id, safe='')}")["slug"])
        except ApiError as error:
            if error.status not in {404, 422}:
                raise
            return tenant_id

    def ensure_tenant(self, slug: str) -> str:
        """Id of the organisation with this slug, made where it is missing."""
        known = self.find_tenant(slug)
        if known is not None:
            return known
        try:
            return str(
                self.client().post(
                    "/api/v1/organizations", {"slug": slug, "name": slug, "plan": "enterprise"}
                )["id"]
            )
        except ApiError as error:
            if error.status != 409:
                raise
            return str(self.find_tenant(slug))

    def tenant_key(self, slug: str) -> str:
        """An API key of the tenant, made at the first use and kept in a file of mode 0600."""
        # A key that was made for fewer purposes is left alone; it has another name.
        name = f"{slug} {' '.join(TENANT_SCOPES)}"
        keys = self._read_keys()
        if name in keys:
            with Client(self.gateway_url, keys[name]) as tenant:
                try:
                    # Not metered, unlike most: a look must not show on the tenant's invoice.
                    tenant.get("/api/v1/billing/invariants")
                except ApiError as error:
                    if error.status != 401:
                        raise
                else:
                    return keys[name]
        tenant_id = self.ensure_tenant(slug)
        created = self.client().post(
            f"/api/v1/organizations/{tenant_id}/keys",
            {"name": "headrace command line", "scopes": list(TENANT_SCOPES)},
        )
        self._write_keys({**self._read_keys(), name: created["key"]})
        return str(created["key"])

    def _read_keys(self) -> dict[str, str]:
        try:
            return dict(json.loads(self._keys_file.read_text()))
        except FileNotFoundError:
            return {}

    def _write_keys(self, keys: Mapping[str, str]) -> None:
        temporary = self._keys_file.with_suffix(".tmp")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(keys, file)
        temporary.replace(self._keys_file)
