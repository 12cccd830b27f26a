"""How a topic becomes a Delta table: slices of dense offsets, each landed in one commit with its fates."""
