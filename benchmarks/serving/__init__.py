"""Serving side by side with its peers: requests per second, latency, and CPU per request, all on one machine."""
