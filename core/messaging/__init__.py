"""Messaging, written once above the event log: outbox and relay, inbox, lanes, watchdog, trace headers."""
