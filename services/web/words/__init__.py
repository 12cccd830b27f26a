"""What the pages say, one module a language with the same keys."""
