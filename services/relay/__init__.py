"""The relay service: moves the outbox to the event log, measures backlogs, sweeps what has expired."""
