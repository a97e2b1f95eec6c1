"""A worker with an engine and a delivery that do what a real one should not. Started by tests in the SDK's loop.

Its one argument says what loading the model does: ``loads``, ``cuda`` or ``refuses``.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import handler
from ltx2.engine import CancelFlag, Clip, EngineStatus, OnProgress
from ltx2.errors import NotReady
from ltx2.fake import FakeEngine
from ltx2.media.bucket import Bucket
from ltx2.request import GenerationRequest
from ltx2.serverless.delivery import Delivery
from ltx2.settings import Settings, load_settings

ODD: Mapping[str, object] = {
    "odd": {
        "seconds": [float("nan"), float("inf")],
        "warnings": ["half: \ud83d"],
        "\udc00": b"x",
        "path": Path("/etc"),
    },
    "nothing": {},
    "much": {"video": "x" * 25_000_000},
}


class OddEngine(FakeEngine):
    """Cannot be loaded, if it is told so."""

    def __init__(self, settings: Settings, loading: str) -> None:
        super().__init__(settings)
        self._loading = loading

    def load(self) -> None:
        if self._loading == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
        if self._loading == "refuses":
            raise NotReady("there is no licence for this model", hint="buy one")
        super().load()

    def status(self) -> EngineStatus:
        return EngineStatus(("odd",), 0.0, 1.0)

    def generate(
        self, request: GenerationRequest, media: Mapping[str, bytes], on_progress: OnProgress, cancelled: CancelFlag
    ) -> Clip:
        self.load()
        return super().generate(request, media, on_progress, cancelled)


class OddDelivery(Delivery):
    """Gives the result that the prompt names."""

    async def deliver(
        self, job: Mapping[str, Any], request: GenerationRequest, clip: Clip, bucket: Bucket | None
    ) -> Any:
        if request.prompt in ODD:
            return ODD[request.prompt]
        return await super().deliver(job, request, clip, bucket)


if __name__ == "__main__":
    settings = load_settings()
    handler.serve(settings, OddEngine(settings, sys.argv[1]), OddDelivery(settings))
