"""Who may come in: callers known by a token, a JSON Web Token or a certificate, and how often they may.

The order in which a request is asked who sent it: what it carries (a bearer token before the key header before the
query, and in each place a token before a JSON Web Token), then its connection's certificate, then nobody in particular.
"""

from keyturn.access.authentication import Access, Admission

__all__ = ["Access", "Admission"]
