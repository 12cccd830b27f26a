"""Invoices over HTTP: the draft, closing a period, adjustments, and what was issued."""
