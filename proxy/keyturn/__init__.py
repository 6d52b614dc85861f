"""Keyturn: an authenticating, rate-limit-aware reverse proxy for the Postman API."""

__version__ = "0.1.0"
