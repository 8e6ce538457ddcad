"""Reads compose files as docker compose does, and runs their services with or without docker.

The reader knows the part of the format that a job of tfdist needs, and rejects the rest: docker
compose would apply a key that tfdist ignored.
"""
