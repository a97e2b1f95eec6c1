"""The HTTP server: ``python server.py --host 0.0.0.0 --port 8000``."""

import argparse
import logging
import sys

import uvicorn

from ltx2.dialects.app import create_app
from ltx2.errors import LTX2Error
from ltx2.model.local import LocalEngine
from ltx2.settings import load_settings
from ltx2.studio.studio import Studio


def main() -> int:
    try:
        settings = load_settings()
    except LTX2Error as error:
        print(error.message, file=sys.stderr)  # noqa: T201
        return 2
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default=settings.host, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=settings.port, help="port to listen on (default: %(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    app = create_app(Studio(settings, LocalEngine(settings)))
    config = uvicorn.Config(
        app,
        host=arguments.host,
        port=arguments.port,
        log_level=settings.log_level.lower(),
        access_log=False,  # the application logs each request with its id
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    # first the port, then the model: a second server must not push the first one out of the GPU
    uvicorn.Server(config).run(sockets=[config.bind_socket()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
