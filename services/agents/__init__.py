"""Agents: what they are, conversations with them, and the runs that answer."""
