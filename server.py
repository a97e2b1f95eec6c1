"""The HTTP server: ``python server.py --host 0.0.0.0 --port 8000``."""

import argparse
import asyncio
import gc
import logging
import os
import sys
from socket import socket as Socket  # noqa: N812
from types import FrameType
from typing import get_args

import uvicorn

from ltx2.dialects.app import create_app
from ltx2.dialects.guard import MOST_MESSAGE_BYTES, GuardedSockets
from ltx2.engine import Engine
from ltx2.errors import LTX2Error
from ltx2.settings import Settings, load_settings
from ltx2.studio.process import ENGINES, ProcessEngine
from ltx2.studio.studio import Studio


class Server(uvicorn.Server):
    """Tells the studio at once when it is told to end, so that those who only watch leave."""

    def __init__(self, config: uvicorn.Config, studio: Studio) -> None:
        super().__init__(config)
        self._studio = studio
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[Socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._studio.drain)


def main() -> int:
    try:
        settings = load_settings()
        options = _options(settings)
        settings = settings.model_copy(update=vars(options))
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        config = uvicorn.Config(
            "",
            host=settings.host,
            port=settings.port,
            log_level=settings.log_level.lower(),
            # the other parser loses the body of a request that would change to HTTP/2, as Java's client offers to
            http="h11",
            access_log=False,  # the application logs each request with its id
            ws=GuardedSockets,
            ws_max_size=min(settings.max_body_bytes, MOST_MESSAGE_BYTES),
            ws_ping_timeout=None,  # while a message waits nothing is read, not even that a client is there
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
        # what is in the data folder is nobody else's business
        os.umask(0o077)
        for noisy in ("python_multipart", "PIL"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        # first the port, then the model: a second server must not push the first one out of the GPU
        listening = [config.bind_socket()]
        if settings.health_port not in (None, settings.port):
            listening.append(uvicorn.Config("", host=settings.host, port=settings.health_port).bind_socket())
        studio = Studio(settings, make_engine(settings))
    except LTX2Error as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    config.app = create_app(studio)
    # threads that read and write for jobs must not make /health wait: by default each may keep Python for 5 ms
    sys.setswitchinterval(0.0005)
    # nor may the search for garbage among all that is there from the start, which takes some 50 ms each time
    gc.freeze()
    Server(config, studio).run(sockets=listening)
    return 0


def make_engine(settings: Settings) -> Engine:
    """What makes the clips.

    Raises:
        LTX2Error: a setting is missing or wrong, or a package.
    """
    match settings.engine:
        case "runpod":
            from ltx2.fleet.endpoint import EndpointEngine

            return EndpointEngine(settings)
        case "ray":
            from ltx2.fleet.cluster import ClusterEngine

            return ClusterEngine(settings)
        case here:
            return ProcessEngine(settings, ENGINES[here])


def _options(settings: Settings) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    field = Settings.model_fields["engine"]
    parser.add_argument("--host", default=settings.host, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=settings.port, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--engine",
        choices=get_args(field.annotation),
        default=settings.engine,
        help=f"{field.description} (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
