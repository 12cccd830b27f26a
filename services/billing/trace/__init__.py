"""Traces: from an invoice line to its events, from an event to what became of it, and issued documents computed
again. The rows come from the lake (`lake.py` asks the lookup); every amount is rated here, anew."""
