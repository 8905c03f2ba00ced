"""The Open Inference Protocol server: one ASGI application, embedded or on Ray Serve."""
