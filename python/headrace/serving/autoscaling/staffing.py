"""How many replicas keep the waits of a given rate within an objective."""

from __future__ import annotations

import math

# Waits behind servers of nearly constant service time fall off twice as fast as behind exponential ones: the
# heavy-traffic limit of M/D/n against M/M/n. That it carries over to two choices is what simulation shows.
_CONSTANT_SERVICE = 2.0
# No objective makes more replicas useful than this utilisation does: a wait shorter than one service cannot be bought.
_UTILISATION_MIN = 0.3
_EXPONENT_MAX = 700.0  # of exp(-x), which is 0 beyond


def replicas_for(
    rate_rps: float, capacity_rps: float, wait_s: float, late_share: float, utilisation: float, most: int
) -> int:
    """The least n at which at most `late_share` of the requests wait longer than `wait_s`, by two models of the queues.

    Each replica counts as a server of `capacity_rps`, R = rate / capacity is the load in Erlangs.

    All replicas as one queue, which is as good as it gets: M/M/n with the tail of a constant service time,

        P(wait > t) = C(n, R) * exp(-2 * (n - R) * capacity * t)

    where C is Erlang's delay formula. The n found grows like R + constant * sqrt(R), the square-root staffing rule: a
    single replica keeps much headroom, a thousand keep little. (Erlang 1917; Halfin and Whitt, Operations Research
    29(3), 1981.)

    A queue per replica, and a balancer that picks the shorter of two: with many replicas at utilisation u, the share of
    queues with k or more requests is u^(2^k - 1) for exponential service, and about its square for constant service; a
    request waits longer than t behind k = 1 + capacity * t of them. (Vvedenskaya, Dobrushin and Karpelevich 1996;
    Mitzenmacher, IEEE TPDS 12(10), 2001.)

    Args:
        rate_rps: Requests per second to plan for.
        capacity_rps: Requests per second one replica can sustain; more than 0.
        wait_s: The wait that is still fine.
        late_share: Share of the requests that may wait longer, between 0 and 1.
        utilisation: Utilisation not to be exceeded however many replicas there are.
        most: Nobody asks for more; the answer is at most this.

    Returns:
        A number of replicas in [0, most]. It never falls when `rate_rps` rises.
    """
    load = rate_rps / capacity_rps
    if load <= 0:
        return 0
    requests = capacity_rps * wait_s
    if load <= utilisation and _one_queue(load, 1, load, requests) <= late_share:
        return min(1, most)
    utilisation = min(utilisation, max(_UTILISATION_MIN, _two_choices(requests, late_share)))
    # The small slack keeps 2.0000000001 from becoming 3.
    at_least = load / utilisation - 1e-9
    if at_least >= most:
        return most
    least = max(1 if load <= utilisation else 2, math.ceil(at_least))
    if _one_queue(1.0, least, load, requests) <= late_share:  # Erlang's C is at most 1, so this is enough already
        return least
    blocked = 1.0  # Erlang's B of n servers, from that of n - 1
    for n in range(1, most):
        blocked = load * blocked / (n + load * blocked)
        if n < least or n <= load:
            continue
        delayed = blocked / (1 - (load / n) * (1 - blocked))
        if _one_queue(delayed, n, load, requests) <= late_share:
            return n
    return most


def _one_queue(delayed: float, n: int, load: float, requests: float) -> float:
    """The share of waits longer than `requests` service times of one replica."""
    return delayed * math.exp(-min(_EXPONENT_MAX, _CONSTANT_SERVICE * max(0.0, n - load) * requests))


def _two_choices(requests: float, late_share: float) -> float:
    """The utilisation at which a request finds more than `requests` before it with probability `late_share`."""
    if late_share <= 0:
        return 0.0
    queues = math.pow(2, min(_EXPONENT_MAX, 1 + requests)) - 1
    return math.pow(late_share, 1 / (_CONSTANT_SERVICE * queues))
