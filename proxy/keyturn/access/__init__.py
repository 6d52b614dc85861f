"""Authentication of callers by a token, a JSON Web Token or a certificate, and their rates.

The first that is found decides: what the request carries (a bearer token before the key header before the query, and in
each place a token before a JSON Web Token), then its connection's certificate, then the anonymous client.
"""

from keyturn.access.authentication import Access, Admission

__all__ = ["Access", "Admission"]
