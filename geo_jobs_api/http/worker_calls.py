"""The calls of workers, answered without the framework's routing, which takes longer than a call."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_type_hints
from uuid import UUID

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geo_jobs_api.http.middleware import problem_of, problem_response
from geo_jobs_api.http.routes import LARGE_BYTES
from geo_jobs_api.http.services import base_url_of, services_of
from geo_jobs_api.queue.rules import LeaseToken

_JOB_PATH = re.compile("(.*/)([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(/[a-z]+)")
_JSON = (b"content-type", b"application/json")
# Of a lease token in its header.
MAX_TOKEN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class _Call:
    route: APIRoute
    parameters: frozenset[str]
    validate: Callable[[bytes], Any]
    # The body may be missing.
    is_optional: bool

    @classmethod
    def of(cls, route: APIRoute) -> _Call:
        parameters = inspect.signature(route.endpoint).parameters
        body = TypeAdapter(get_type_hints(route.endpoint, include_extras=True)["body"])
        is_optional = parameters["body"].default is None
        return cls(route, frozenset(parameters), body.validator.validate_json, is_optional)

    async def arguments(self, request: Request, body: bytes, job_id: str | None) -> dict[str, Any] | None:
        """Return the arguments of the endpoint. None: the request is invalid or unusual."""
        token = LeaseToken.parse(request.headers.get("lease-token", "")[: MAX_TOKEN_CHARACTERS + 1])
        if "token" in self.parameters and (token is None or len(str(token)) > MAX_TOKEN_CHARACTERS):
            return None
        try:
            if body or not self.is_optional:
                is_large = len(body) > LARGE_BYTES
                read = await asyncio.to_thread(self.validate, body) if is_large else self.validate(body)
            else:
                read = None
        except ValidationError:
            return None
        available = {
            "job_id": None if job_id is None else UUID(job_id),
            "token": token,
            "body": read,
            "request": request,
            "services": services_of(request),
            "base_url": base_url_of(request) if "base_url" in self.parameters else None,
        }
        return {name: value for name, value in available.items() if name in self.parameters}


class WorkerCalls:
    """Calls the functions of worker routes directly, for valid requests.

    The others go on to the router with their bodies. It calls the same functions, and explains invalid requests.

    Args:
        routes: of the worker calls, each with one method.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._calls = {
            (method, route.path): _Call.of(route)
            for route in routes
            if isinstance(route, APIRoute) and route.include_in_schema
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        call = path = job_id = None
        if scope["type"] == "http":
            path = scope["path"]
            if (found := _JOB_PATH.fullmatch(path)) is not None:
                path, job_id = f"{found[1]}{{job_id}}{found[3]}", found[2]
            call = self._calls.get((scope["method"], path))
        if call is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        scope["route"] = call.route
        try:
            body = await request.body()
            arguments = await call.arguments(request, body, job_id)
            if arguments is None:
                await self._app(scope, _repeated(body, receive), send)
                return
            answer = await call.route.endpoint(**arguments)
        except Exception as error:
            problem = problem_of(error)
            if problem is None:
                raise
            answer = problem_response(problem)
        if isinstance(answer, Response):
            await answer(scope, receive, send)
            return
        text = answer.__pydantic_serializer__.to_json(answer, by_alias=True)
        headers = [(b"content-length", b"%d" % len(text)), _JSON]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})


def _repeated(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that begins with a body that was read already."""
    messages: list[Message] = [{"type": "http.request", "body": body}]

    async def receive_repeated() -> Message:
        return messages.pop() if messages else await receive()

    return receive_repeated
