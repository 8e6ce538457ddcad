"""Benchmarks beside their peers; `scripts/bench` lists and runs them."""
