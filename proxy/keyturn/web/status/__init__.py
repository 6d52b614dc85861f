"""The status page: its data, the document that they are told in, and its files. Knows no HTTP library."""
