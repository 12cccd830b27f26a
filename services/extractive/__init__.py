"""`local-extractive`: an offline, OpenAI-compatible server that answers by quoting passages. No language model."""
