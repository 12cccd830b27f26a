"""What every service shares: app factory, errors, strict bodies, identity of the caller, lists, server."""
