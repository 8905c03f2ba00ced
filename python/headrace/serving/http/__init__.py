"""HTTP/1.1 for one ASGI application, on llhttp's parser, under uvicorn's server.

uvicorn's own protocol costs a small request more than its inference does: a task, an event, a timer, two messages with
checked headers. And it bounds neither what a client may send as a head nor how long it may take. Here a request whose
answer waits for nothing is answered before `data_received` returns, an answer goes out whole in one write, and time is
checked by one sweep over all connections.

`parser` makes requests of bytes; `exchange` is one of them and its answer as the application sees them; `connection`
has them answered in their order and decides whether the connection outlives them; `limits` says how long all that may
take.
"""
