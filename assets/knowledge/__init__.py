"""Documents, from the stored file to what a search finds."""
