"""Benchmarks that compare tfdist with its peers; `scripts/bench` lists and runs them."""
