"""The one public door: authenticates, limits, meters and passes on without reading bodies."""
