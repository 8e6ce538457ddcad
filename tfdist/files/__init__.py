"""Splits of real files: which records there are, where they lie, and how to read some of them."""
