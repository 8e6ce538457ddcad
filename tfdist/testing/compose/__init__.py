"""Reads compose files as docker compose does, for whoever runs their services without an engine.

It knows the part of the format that a job of tfdist needs, and refuses the rest: a key that it
passed over in silence would mean something else here than there.
"""

from tfdist.testing.compose.reader import read_compose
from tfdist.testing.compose.service import ComposeFile, Healthcheck, Network, Service, Volume

__all__ = ["ComposeFile", "Healthcheck", "Network", "Service", "Volume", "read_compose"]
