"""Statistics and reports: what the extra `research` is for. Reads the store, and files of judgements."""
