"""What indexing and searching must do alike: tokens of a text, places of derived data, fusion of scores."""
