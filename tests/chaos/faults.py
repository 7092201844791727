"""Faults of an S3 server and of the network, drawn from a seed."""

import random
import threading
from collections import Counter

from tests.harness.s3_server import Exchange

KINDS = ("reset", "answer lost", "500", "503 SlowDown", "cut short", "hung", "stale listing")


class FaultSchedule:
    """Makes a share of the requests fail, and counts the faults.

    The same seed draws the same faults for the same sequence of requests. If several processes send requests at once,
    their order varies from run to run.
    """

    def __init__(self, hang_seconds: float) -> None:
        self._hang_seconds = hang_seconds
        self._lock = threading.Lock()
        self._random = random.Random()
        self._share = 0.0
        self._listings: dict[str, bytes] = {}
        self.refuse_writes_to = ""
        """Part of a path. Every PUT to a path that contains it is answered with 500."""
        self.requests: Counter[str] = Counter()
        """Number of requests per method."""
        self.faults: Counter[str] = Counter()
        """Number of faults per kind."""

    def begin(self, seed: int, share: float) -> None:
        """Restart the draws from this seed, and reset the counts."""
        with self._lock:
            self._random.seed(seed)
            self._share = share
            self.refuse_writes_to = ""
            self.requests.clear()
            self.faults.clear()

    def before(self, exchange: Exchange) -> None:
        """Inject a fault before the server sees the request."""
        with self._lock:
            self.requests[exchange.method] += 1
            if self.refuse_writes_to and exchange.method == "PUT" and self.refuse_writes_to in exchange.path:
                self.faults["refused write"] += 1
                exchange.answer_instead = 500
                return
            if self._random.random() >= self._share:
                return
            exchange.fault = kind = self._draw(exchange)
            self.faults[kind] += 1
            middle = self._random.randrange(max(1, len(exchange.body)))
        if kind == "reset":
            exchange.cut_request_at = 0
        elif kind == "cut short" and exchange.body:
            exchange.cut_request_at = middle
        elif kind == "hung":
            exchange.hang_seconds = self._hang_seconds
            exchange.lose_answer = True
        elif kind[:3] in ("500", "503"):
            exchange.answer_instead = int(kind[:3])

    def after(self, exchange: Exchange) -> None:
        """Inject a fault into the answer."""
        stale = None
        if may_be_stale(exchange):
            with self._lock:
                stale = self._listings.get(exchange.path)
                self._listings[exchange.path] = exchange.answer_body
        if exchange.fault == "answer lost":
            exchange.lose_answer = True
        elif exchange.fault == "cut short":
            exchange.cut_answer_at = len(exchange.answer_body) // 2
        elif exchange.fault == "stale listing" and stale is not None:
            exchange.answer_body = stale

    def _draw(self, exchange: Exchange) -> str:
        if may_be_stale(exchange) and self._random.random() < 0.5:
            return "stale listing"
        return self._random.choice([kind for kind in KINDS if kind != "stale listing"])


def may_be_stale(exchange: Exchange) -> bool:
    """Return whether a request lists objects other than Delta's log, of which delta-rs needs consistent listings.

    S3, Ceph and moto have them. Our own code doesn't rely on it.
    """
    return exchange.method == "GET" and "list-type=2" in exchange.path and "_delta_log" not in exchange.path
