"""A real HTTP server with scripted answers. It records its requests."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Answer = Response | Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Asked:
    """One recorded request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class ScriptedApi:
    """Answers by the last word of the path, in the given order. The last answer repeats."""

    base_url: str
    script: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    def on(self, last_word: str, *answers: Answer) -> None:
        self.script[last_word] = list(answers)

    def calls(self, last_word: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path.rsplit("/", 1)[-1] == last_word]

    async def until_asked(self, last_word: str, times: int = 1) -> None:
        async with asyncio.timeout(20), self.news:
            await self.news.wait_for(lambda: len(self.calls(last_word)) >= times)

    async def handle(self, request: Request) -> Response:
        body = await request.body()
        path = request.url.path
        async with self.news:
            self.asked.append(Asked(request.method, path, dict(request.headers), body))
            self.news.notify_all()
        answers = self.script.get(path.rsplit("/", 1)[-1])
        if not answers:
            return problem(404, "not-scripted")
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer if isinstance(answer, Response) else await answer(request)


def problem(status: int, code: str, detail: str = "in the server's words", **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(
        {"status": status, "code": code, "detail": detail},
        status,
        headers=named,
        media_type="application/problem+json",
    )


def answer(content: Any = None, status: int = 200) -> Response:
    return JSONResponse(content, status) if content is not None else Response(status_code=status)


@contextlib.asynccontextmanager
async def scripted_api() -> AsyncIterator[ScriptedApi]:
    listener = socket.create_server(("127.0.0.1", 0))
    api = ScriptedApi(f"http://127.0.0.1:{listener.getsockname()[1]}")
    methods = ["GET", "PUT", "POST", "PATCH"]
    app = Starlette(routes=[Route("/{path:path}", api.handle, methods=methods)])
    # Without a Date of its own, so that tests control the time.
    config = uvicorn.Config(app, log_level="error", lifespan="off", date_header=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield api
    finally:
        server.should_exit = True
        await serving
        listener.close()
