"""Talking to one parameter server."""
