"""Reads the lake for the other services: sums of landed usage, the rows behind them, the row of one event.

It answers only to parts of the platform and writes nothing. It is the one service with the data stack
(`docs/adr/0013-a-service-that-reads-the-lake.md`); billing, which asks it, stays without.
"""
