"""Users: people, organisations, roles, access tokens and API keys (port 8001)."""
