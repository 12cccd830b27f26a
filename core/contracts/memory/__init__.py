"""`memory.v1`, generated from memory.proto by `make proto`."""
