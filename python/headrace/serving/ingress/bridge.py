"""An ASGI application that Serve calls on its loop and that answers on another."""

from __future__ import annotations

from headrace.errors import Cancelled
from headrace.serving.app import OipApp, Scope, path_of
from headrace.serving.body import BodyHeaders, InFlight, Receive, Send, read_body
from headrace.serving.ingress.door import Exchange
from headrace.serving.ingress.loop_thread import LoopThread
from headrace.serving.ingress.wire import Ask


class Bridge:
    """Takes requests from Serve's proxy to the loop the application runs on, whole, and its answers back.

    A class with ``__call__``, because uvicorn takes any other callable that is no plain function for ASGI 2.

    Args:
        app: The application.
        thread: Runs its loop.
    """

    def __init__(self, app: OipApp, thread: LoopThread) -> None:
        self._app = app
        self._thread = thread
        # The application counts the same bodies again: these are those that are still arriving.
        self._in_flight = InFlight(app.service.in_flight.bytes_max)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI 3); where Serve cancels it, the application's work ends too."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held = 0
        try:
            body = await read_body(receive, BodyHeaders(), self._app.body_bytes_max, self._in_flight)
            held = len(body)
            ask = Ask(0, scope["method"], path_of(scope), list(scope["headers"]))
            done = await self._thread.run(Exchange(ask, body).run(self._app))
        except Cancelled:
            return  # nobody is left to be told
        except Exception as error:
            await self._app.send_error(error, send)
            return
        finally:
            self._in_flight.give(held)
        await send({"type": "http.response.start", "status": done.status, "headers": done.headers})
        await send({"type": "http.response.body", "body": done.body})
