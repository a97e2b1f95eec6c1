"""What a user of the ``runware-sdk`` library does, over both of its transports. Prints what it saw as one JSON object.

Runs in an environment that has that library and nothing of ours: ``runware_sdk_client.py URL KEY [PHOTO]``. Without a
photo it only makes one clip.
"""

import asyncio
import base64
import json
import sys
import time
from pathlib import Path
from typing import Any

from runware import Runware, RunwareError
from runware.types.sdk import RunOptions

SMALL: dict[str, Any] = {
    "taskType": "videoInference",
    "model": "lightricks:ltx@2.3",
    "positivePrompt": "a lamp",
    "width": 64,
    "height": 64,
    "duration": 0.4,
}


async def refused(work: Any) -> dict[str, Any]:
    """The error that something raises, and in how many seconds."""
    began = time.monotonic()
    try:
        await work
    except RunwareError as error:
        took = time.monotonic() - began
        return {"code": error.code, "parameter": error.parameter, "message": error.message, "seconds": took}
    return {"code": "nothing was raised"}


async def everything(client: Runware, photo: bytes) -> dict[str, Any]:
    results: list[Any] = []
    progress: list[Any] = []
    options = RunOptions(on_result=results.append, on_progress=progress.append)
    encoded = base64.b64encode(photo).decode()
    (upload,) = await client.image_upload({"image": encoded})
    (stored,) = await client.media_storage({"operation": "upload", "media": f"data:image/jpeg;base64,{encoded}"})
    inputs = {"frameImages": [upload["imageUUID"], {"image": encoded, "frame": "last"}]}
    unknown = {"taskUUID": "3f4302eb-1dec-4885-ab35-c138a6095044"}
    sync = SMALL | {"deliveryMethod": "sync", "numberResults": 2}
    (clip,) = await client.run(SMALL)
    anew = {name: SMALL[name] for name in ("taskType", "positivePrompt")} | {"model": "lightricks:3@1"}
    anew |= {"inputs": {"video": clip["videoUUID"]}, "lora": [{"model": "film", "weight": 0.5}]}
    part = {"startTime": 0.1, "duration": 0.2, "mode": "replace_audio"}
    work = {
        "image": client.run(SMALL | {"inputs": inputs, "includeCost": True}),
        "sync": client.run(sync),
        "retake": client.run(anew | {"providerSettings": {"lightricks": part}, "settings": {"enhancePrompt": True}}),
        "model": refused(client.run(SMALL | {"model": "runware:100@1"})),
        "field": refused(client.run(SMALL | {"colour": "red"})),
        "failed": refused(client.run(SMALL | {"positivePrompt": "fail=out_of_memory"})),
        "sync failed": refused(client.run(sync | {"positivePrompt": "fail=out_of_memory"})),
        "unknown": refused(client.get_response(unknown)),
        "other": refused(client.account_management({"operation": "getDetails"})),
        "three": client.run(SMALL | {"numberResults": 3, "positivePrompt": "seconds=0.4", "seed": 1}, options),
    }
    seen = dict(zip(work, await asyncio.gather(*work.values()), strict=True))
    seen["removed"] = await client.media_storage({"operation": "delete", "media": stored["mediaUUID"]})
    return seen | {"upload": upload, "stored": stored, "results": results, "progress": progress}


async def main(url: str, key: str, image: bytes) -> dict[str, Any]:
    async def by(transport: str) -> dict[str, Any]:
        places = {"http_base_url": url, "ws_base_url": url.replace("http", "ws", 1)}
        client = Runware(api_key=key, transport=transport, **places)
        try:
            await client.connect()
            return await everything(client, image) if image else {"text": await client.run(SMALL)}
        except RunwareError as error:
            return {"code": error.code, "message": error.message}
        finally:
            await client.close()

    rest, websocket = await asyncio.gather(by("rest"), by("websocket"))
    return {"rest": rest, "websocket": websocket}


if __name__ == "__main__":
    _, url, key, *photo = sys.argv
    print(json.dumps(asyncio.run(main(url, key, Path(photo[0]).read_bytes() if photo else b""))))
