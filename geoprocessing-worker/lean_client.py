"""An HTTP client that does what the worker's own calls need and nothing else: httpx without its way round them."""

from typing import Any

import httpx


class LeanClient(httpx.AsyncClient):
    """Sends each request once, through the client's hooks and its transport, proxies included.

    No cookies are kept or sent, no redirect is followed, no credentials are taken from addresses. httpx looks into all
    of that for each request, at a sixth of a small call's processor time, and small jobs are ten small calls each.
    """

    async def send(self, request: httpx.Request, *, stream: bool = False, **_unused: Any) -> httpx.Response:
        """Send one request; the answer is read to its end unless it is to be streamed.

        Raises:
            httpx.TransportError: as `httpx.AsyncClient.send`. And what a hook raises.
        """
        if self.is_closed:
            raise RuntimeError("the client is closed")
        for hook in self.event_hooks["request"]:
            await hook(request)
        # The one step that httpx has no public name for: it chooses between proxies by the operator's environment.
        response = await self._transport_for_url(request.url).handle_async_request(request)
        response.request = request
        try:
            for hook in self.event_hooks["response"]:
                await hook(response)
            if not stream:
                await response.aread()
        except BaseException:
            await response.aclose()
            raise
        return response
