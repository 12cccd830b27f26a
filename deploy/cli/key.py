"""`headrace key`: an API key to try things with."""

import argparse

from deploy.cli.frame import CommandError, Subparsers, command, no_tenant, print_json, running_installation

DEMO_TENANT = "demo-sample"


def register(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "key",
        "Print an API key of a local tenant; the key is made where it is missing",
        run,
        examples=(
            "headrace key",
            'curl -H "Authorization: Bearer $(headrace key)" http://127.0.0.1:8080/api/v1/usage',
            "headrace key --tenant acme --json",
        ),
    )
    parser.add_argument(
        "--tenant",
        default=DEMO_TENANT,
        metavar="SLUG",
        help=f"default: {DEMO_TENANT}, which is made where it is missing",
    )


def run(arguments: argparse.Namespace) -> int:
    from deploy.client import ApiError, PlatformUnreachableError
    from deploy.session import operator

    installation = running_installation(arguments)
    owner = operator(installation)
    try:
        tenant = owner.find_tenant(arguments.tenant)
        if tenant is None and arguments.tenant != DEMO_TENANT:
            raise CommandError(no_tenant(arguments.tenant))
        tenant = tenant or owner.ensure_tenant(arguments.tenant)
        key = owner.tenant_key(arguments.tenant)
    except (ApiError, PlatformUnreachableError) as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        print_json(
            {"key": key, "tenant": arguments.tenant, "tenant_id": tenant, "gateway": owner.gateway_url}
        )
    else:
        print(key)
    return 0
