"""Where the buckets live."""
