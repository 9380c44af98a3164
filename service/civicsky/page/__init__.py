"""The page to watch the service by: what it gathers, and the files that a browser gets."""
