"""Autoscaling policies on simulated replicas, and the simulator against a real run."""
