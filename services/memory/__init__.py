"""Memory: knowledge bases, documents on their way to being searchable, search, and memories of turns."""
