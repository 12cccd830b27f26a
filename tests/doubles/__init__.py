"""Servers that stand in for others, on real sockets."""
