"""A sender that follows redirects; see `redirects` for which of them.

A request that is sent on keeps its place among those that are under way, has a request's time each time,
and counts as one each time, for `--rate`, too. The last reply is the endpoint's: it judges the message,
the health of the endpoint, and how quick it is. Another try begins at the endpoint again.

What another origin gets is what anybody may know: method, body, and the headers that are ours. Neither
credentials nor the signature, neither a header that the user named nor the client certificate go there,
nor anywhere else that it leads to, back to the endpoint included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.outputs.http.outcome import Outcome
from nsqtools.outputs.http.pool import ClientOptions, Pool
from nsqtools.outputs.http.redirects import REDIRECTS, check_method, resolve
from nsqtools.outputs.http.request import directly
from nsqtools.outputs.http.sender import Sender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nsqtools.outputs.http.connection import Reply
    from nsqtools.outputs.http.outcome import Rules
    from nsqtools.outputs.http.picking import Picker
    from nsqtools.outputs.http.proxy import Proxy
    from nsqtools.outputs.http.sender import Endpoint, Job, Pacing
    from nsqtools.outputs.http.url import Origin, Url

# Other origins whose connections are kept at a time; an endpoint that leads to more is at fault.
ORIGINS_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """`most` redirects of a request are followed; `client` is how other origins are asked, and must not
    tell them who we are."""

    most: int
    client: ClientOptions
    proxy_of: Callable[[Origin], Proxy | None] = directly


@dataclass(slots=True)
class _Trail:
    """How far a job has come: where it was sent last, and when first."""

    url: Url
    sent_s: float
    redirects: int = 0
    has_left: bool = False


class FollowingSender(Sender):
    """See the module."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        picker: Picker,
        rules: Rules,
        pacing: Pacing,
        secrets: Sequence[str],
        following: Following,
    ) -> None:
        super().__init__(endpoints, picker, rules, pacing, secrets)
        self._following = following
        self._trails: dict[Job, _Trail] = {}
        self._pools: dict[Origin, Pool] = {}  # the one used last is at the end
        self._opened = 0  # by pools that are gone

    @property
    def connections_opened(self) -> int:
        elsewhere = sum(pool.opened for pool in self._pools.values())
        return super().connections_opened + self._opened + elsewhere

    def close(self) -> None:
        super().close()
        for pool in self._pools.values():
            pool.close()

    def _answered(self, job: Job, reply: Reply) -> None:
        if reply.status in REDIRECTS and self._judge(reply.status) is not Outcome.DONE:
            try:
                self._follow(job, reply)
            except ValueError as reason:
                reply = reply._replace(error=f"not followed: {reason}")
            else:
                return
        if (trail := self._trails.pop(job, None)) is not None:
            job.sent_s = trail.sent_s
            what = f"{reply.error}, " if reply.error else ""
            reply = reply._replace(error=f"{what}after a redirect to {trail.url.origin}")
        super()._answered(job, reply)

    def _follow(self, job: Job, reply: Reply) -> None:
        """Raises ValueError with the reason not to."""
        endpoint = self.endpoints[job.endpoint]
        maker = endpoint.maker
        trail = self._trails.get(job) or _Trail(maker.url_of(job.request), job.sent_s)
        if trail.redirects >= self._following.most:
            raise ValueError(f"more than {self._following.most} redirects")
        if job.is_cancelled:
            raise ValueError("nobody waits for it any more")
        check_method(reply.status, maker.method)
        url = resolve(reply.location, trail.url)
        has_left = trail.has_left or url.origin != trail.url.origin
        pool = self._pool(url.origin) if has_left else endpoint.pool
        job.request = maker.redirected(url, job.body, job.values, pool.proxy, is_elsewhere=has_left)
        self._trails[job] = _Trail(url, trail.sent_s, trail.redirects + 1, has_left)
        self.counts["requests"] += 1
        self.counts["redirects"] += 1
        self._note_rate(self._loop.time())
        pool.send(job)

    def _pool(self, origin: Origin) -> Pool:
        """The connections to another origin. Raises ValueError where there is no room for more."""
        pool = self._pools.pop(origin, None)
        if pool is None:
            self._make_room()
            pool = Pool(origin, self._following.client, self._following.proxy_of(origin))
        self._pools[origin] = pool
        return pool

    def _make_room(self) -> None:
        if len(self._pools) < ORIGINS_MAX:
            return
        idle = next((origin for origin, pool in self._pools.items() if not pool.is_busy), None)
        if idle is None:
            raise ValueError(f"redirects lead to more than {ORIGINS_MAX} places at once")
        pool = self._pools.pop(idle)
        pool.close()
        self._opened += pool.opened
