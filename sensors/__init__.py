"""Edges to the world. Each sensor is listed here; the list is the documentation."""

from sensors.failures import run_failures
from sensors.knowledge import document_batches
from sensors.slices import audit_logs_slices, usage_records_slices

ALL = [usage_records_slices, audit_logs_slices, document_batches, run_failures]
