"""What a running process tells about itself: Prometheus metrics, the request ledger and the guards' counts."""
