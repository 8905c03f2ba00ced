"""How requests reach replicas on Ray: the ingress listens, a door in each replica answers, links join them.

    client -> ingress (one process) -> link -> door (in each replica) -> the same application as `headrace serve`

`ingress.wire` is what goes over a link, `ingress.door` the replica's end of it, `ingress.link` the ingress's end,
`ingress.pool` all replicas of a model, `ingress.loop_thread` the event loop that either runs beside Ray Serve's.
"""
