"""The users service as an application: settings in, routes out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from sqlalchemy import text

from core.cache import open_cache
from core.database import Database, tenant
from core.log import Logger
from core.security.fields import FieldCipher
from core.settings import (
    AccountSettings,
    CacheSettings,
    DatabaseSettings,
    OwnerSettings,
    SecuritySettings,
    ServiceSettings,
)
from core.tasks import cancel
from services.common.app import service_app
from services.common.auth import internal_key, open_identity
from services.common.lifecycle import Lifecycle
from services.users import account_routes, account_store, member_routes, owner
from services.users.accounts import Accounts
from services.users.api_keys import ApiKeys
from services.users.handlers import Identities
from services.users.invitations import Invitations
from services.users.lockout import Lockout
from services.users.logins import Logins
from services.users.mail import FolderMail, Post
from services.users.members import Members
from services.users.mfa import SecondFactor
from services.users.organizations import Organisations
from services.users.parts import Users
from services.users.passwords import Passwords
from services.users.routes import router
from services.users.sessions import Sessions
from services.users.store import NOBODY
from services.users.tokens import Tokens

NAME = "users"
PORT = 8001
SWEEP_SECONDS: Final = 600.0

_log: Final = Logger("users.app")


def create_app(lifecycle: Lifecycle) -> FastAPI:
    """Read the settings and build the app; connections are opened when it starts.

    Raises:
        pydantic.ValidationError: a setting is missing, wrong or a known default.
    """
    database_settings, cache_settings = DatabaseSettings(), CacheSettings()
    security, services, first_owner = SecuritySettings(), ServiceSettings(), OwnerSettings()
    mail_settings = AccountSettings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            tokens = Tokens.from_file(_key_file(security), services.gateway_url)
            passwords = Passwords()
            stack.callback(passwords.close)
            await owner.ensure(database_settings, first_owner, passwords)
            # No replica: one that lags would bring a revoked key back into the gateways' caches, and
            # deny the organisation that another instance made a moment ago.
            primary = database_settings.model_copy(update={"database_replica_url": None})
            database = Database(primary, role="app")
            stack.push_async_callback(database.close)
            cache = open_cache(cache_settings)
            stack.push_async_callback(cache.aclose)
            app.state.identity = await stack.enter_async_context(open_identity(services, security, cache))
            mail = FolderMail(mail_settings.mail_dir)
            post = Post(mail, services.web_url)
            stack.push_async_callback(post.close)
            sweep = asyncio.create_task(_sweep(database, mail), name="sweep")
            stack.push_async_callback(cancel, sweep)
            lockout = Lockout(internal_key(security))
            second_factor = SecondFactor(FieldCipher.from_settings(security))
            sessions = Sessions(database, cache, tokens)
            logins = Logins(database, passwords, tokens, sessions, lockout, second_factor)
            accounts = Accounts(
                database,
                passwords,
                sessions,
                logins,
                lockout,
                second_factor,
                post,
                open_to_all=mail_settings.registration == "open",
            )
            app.state.users = Users(
                identities=Identities(database),
                organizations=Organisations(database),
                api_keys=ApiKeys(database, cache),
                tokens=tokens,
                logins=logins,
                sessions=sessions,
                accounts=accounts,
                members=Members(database, sessions),
                invitations=Invitations(database, accounts, logins, post, lockout),
            )
            lifecycle.checks["database"] = lambda: _answers(database)
            lifecycle.checks["cache"] = cache.ping
            yield

    return service_app(
        NAME,
        lifecycle,
        routers=[account_routes.router, router, member_routes.router],
        lifespan=lifespan,
        description="People, their sessions and second factors, organisations, members, access tokens, API keys.",
    )


def _key_file(security: SecuritySettings) -> Path:
    if security.jwt_private_key_file is None:
        raise ValueError(
            "HEADRACE_JWT_PRIVATE_KEY_FILE is not set; make one with `openssl genpkey -algorithm ed25519 -out jwt.pem`"
        )
    return security.jwt_private_key_file


async def _answers(database: Database) -> None:
    with tenant(NOBODY):
        async with database.reader() as connection:
            await connection.execute(text("select 1"))


async def _sweep(database: Database, mail: FolderMail) -> None:
    """Delete what has expired, of accounts and mails; a round that fails is logged and the next one tries."""
    while True:
        try:
            with tenant(NOBODY):
                async with database.writer() as connection:
                    rows = await account_store.forget_old(connection)
            mails = await asyncio.to_thread(mail.forget_old)
            _log.debug("swept", rows=rows, mails=mails)
        except Exception as error:
            # The database comes and goes; the sweep must outlive that.
            _log.warn("sweep failed", error=type(error).__name__)
        await asyncio.sleep(SWEEP_SECONDS)
