"""Web: the pages of the platform, rendered on the server, on the public API alone (port 3000)."""
