"""`headrace invoice`: the draft of all usage that is not invoiced yet."""

import argparse

from deploy.cli.frame import (
    CommandError,
    Subparsers,
    command,
    print_json,
    running_installation,
    value_console,
)


def register(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "invoice",
        "Show the draft invoice of a tenant: all usage not yet invoiced, whatever its date",
        run,
        examples=("headrace invoice --tenant acme", "headrace invoice --tenant acme --json | jq -r .total"),
    )
    parser.add_argument("--tenant", required=True, help="slug of the organisation")


def run(arguments: argparse.Namespace) -> int:

    from deploy.client import ApiError, PlatformUnreachableError
    from deploy.demo import show
    from deploy.session import operator

    owner = operator(running_installation(arguments))
    try:
        if owner.find_tenant(arguments.tenant) is None:
            raise CommandError(f"there is no tenant {arguments.tenant}; an import or the API makes it")
        draft = owner.client().get("/api/v1/billing/invoices/draft", tenant=arguments.tenant)
    except (ApiError, PlatformUnreachableError) as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        print_json(draft)
    else:
        show.invoice(value_console(), draft)
    return 0
