"""`GET /`: the page for a browser. It is static; its scripts ask the same routes as any client."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from serve.errors import RefusedError

PAGE = Path(__file__).parents[1] / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # Trusted types: the browser refuses to make markup of a text, whatever a script of the page does.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # A browser asks each time whether its copy is the newest, so that an upgrade is seen at once.
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    headers: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "_File":
        content = path.read_bytes()
        tag = f'"{sha256(content).hexdigest()[:32]}"'
        return cls(content, {**_HEADERS, "etag": tag, "content-type": _TYPES[path.suffix]})

    def answer(self, request: Request) -> Response:
        """Return the file, or 304 if the browser has it."""
        known = request.headers.get("if-none-match", "")
        # A proxy that compresses marks the tag as weak.
        if self.headers["etag"] in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers)


def home_router() -> APIRouter:
    """Return the routes of the page and of its files. They hold no data, so that they need no token."""
    router = APIRouter()
    files = {
        str(path.relative_to(PAGE)): _File.read(path) for path in PAGE.rglob("*") if path.is_file()
    }

    @router.get("/", include_in_schema=False)
    async def home(request: Request) -> Response:
        return files["index.html"].answer(request)

    @router.get("/page/{name:path}", include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        if name not in files:
            raise RefusedError(404, "The page has no such file.")
        return files[name].answer(request)

    return router
