"""`headrace provision`: get the real servers that `--profile stack` and the tests need."""

import argparse

from deploy.cli.frame import CommandError, Subparsers, command, note, print_json


def register(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "provision",
        "Get Kafka, RabbitMQ, PostgreSQL 15, Redis and MinIO for `--profile stack`, and what its tests need; at once where they are there",
        run,
        examples=("headrace provision", "headrace provision --check --json"),
    )
    parser.add_argument(
        "--check", action="store_true", help="only list what is missing; exit status 1 if anything is"
    )


def run(arguments: argparse.Namespace) -> int:
    from deploy.provision import ProvisioningError, missing, provision

    if not arguments.check:
        try:
            found = provision(note)
        except ProvisioningError as error:
            raise CommandError(str(error)) from error
        if arguments.json:
            print_json({name: str(path) for name, path in found.paths().items()})
        return 0
    lacking = missing()
    if arguments.json:
        print_json([{"name": thing.name, "how": thing.how} for thing in lacking])
    else:
        print("\n".join(f"{thing.name}: {thing.how}" for thing in lacking) or "everything is there")
    return 1 if lacking else 0
