"""What every run imports, imported once in the process that runs are forked from (`pipelines.code_server`).

Only what starts no thread: Polars, Delta and Arrow do, and a fork has none of its parent's threads.
"""

import gc

import dagster._grpc.impl
import dagster_postgres

import pipelines.definitions

__all__ = ["dagster", "dagster_postgres", "pipelines"]

# The collector of a fork would write to every object here, and no page would stay shared.
gc.collect()
gc.freeze()
