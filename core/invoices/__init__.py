"""Invoices: closing a service period, what is adjusted later, and the bytes that were issued.

`document.py` what is issued, `difference.py` rate(now) − what was charged (both pure), `prices.py` at which
prices a period was charged, `store.py` the tables, `issue.py` the transactions, `archive.py` the second copy.
Billing answers HTTP with it, Dagster jobs run it over all tenants.

Three clocks, never substituted: the *service period* (when usage happened), the *slice* (what had landed
when it was rated), `issued_at` (when the document was made). A period is closed at a slice; what lands later
becomes an adjustment that names the period it belongs to. An issued document never changes.
"""
