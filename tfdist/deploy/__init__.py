"""Writes a job as a file for docker compose, docker swarm, Kubernetes or Kubeflow."""
