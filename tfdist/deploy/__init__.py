"""A job written for what runs containers on one machine or on many."""

from collections.abc import Callable, Mapping

from tfdist.deploy.compose_file import compose_file
from tfdist.deploy.deployment import CHECKPOINTS, WORKING_DIR, Deployment
from tfdist.deploy.kubernetes import kubernetes_manifest
from tfdist.deploy.swarm import stack_file
from tfdist.deploy.tfjob import tfjob_manifest

__all__ = ["CHECKPOINTS", "FORMATS", "WORKING_DIR", "Deployment"]

FORMATS: Mapping[str, Callable[[Deployment], str]] = {
    "compose": compose_file,
    "swarm": stack_file,
    "kubernetes": kubernetes_manifest,
    "tfjob": tfjob_manifest,
}
