"""Finds out why a job makes no progress, and reports it."""
