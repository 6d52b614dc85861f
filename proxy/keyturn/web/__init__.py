"""The edge: HTTP in and out, no rate-limit logic."""
