"""What a user of the ``runware`` library does, over its websocket. Prints what it saw as one JSON object.

Runs in an environment that has that library and nothing of ours: ``runware_client.py URL KEY [PHOTO]``. Without a
photo it only makes one clip.
"""

import asyncio
import json
import sys
import time
from typing import Any

from runware import (
    IFrameImage,
    IInputFrame,
    ILightricksProviderSettings,
    ILora,
    ISettings,
    IVideoInference,
    IVideoInputs,
    Runware,
    RunwareAPIError,
)

MODEL = "lightricks:2@1"
SMALL = {"model": MODEL, "positivePrompt": "a lamp", "width": 64, "height": 64, "duration": 0.4, "fps": 25}


async def made(client: Runware, number: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """Ask for clips and wait for them, as the library's examples do."""
    accepted = await client.videoInference(IVideoInference(**{**SMALL, **fields}, numberResults=number))
    videos = await client.getResponse(accepted.taskUUID, numberResults=number)
    return [vars(video) for video in videos]


async def refused(work: Any) -> dict[str, Any]:
    """The error that something raises, and in how many seconds."""
    began = time.monotonic()
    try:
        await work
    except RunwareAPIError as error:
        return {"seconds": time.monotonic() - began, **error.error_data}
    return {"code": "nothing was raised"}


async def everything(client: Runware, photo: str) -> dict[str, Any]:
    seen: dict[str, Any] = {"text": await made(client, includeCost=True)}
    first = [IFrameImage(inputImage=photo, frame="first")]
    seen["image"] = await made(client, frameImages=first)
    upload = await client.uploadImage(photo)
    inputs = IVideoInputs(frameImages=[upload.imageUUID, IInputFrame(image=photo, frame="last")])
    seen["uploaded"] = await made(client, inputs=inputs)
    stored = await client.uploadMedia(photo)
    seen["upload"] = {"image": vars(upload), "media": vars(stored)}
    # slower than the library polls, so that some are there before the others
    seen["four"] = await made(client, 4, seed=7, positivePrompt="seconds=0.15")
    sound = ILightricksProviderSettings(generateAudio=True)
    seen["sound"] = await made(client, providerSettings=sound, outputFormat="WEBM", outputQuality=50)
    # a part of a clip made anew: the size and the length are the clip's
    part = ILightricksProviderSettings(startTime=0, duration=1, mode="replace_video")
    anew = IVideoInference(
        model="lightricks:3@1",
        positivePrompt="another lamp",
        inputs=IVideoInputs(video=(await made(client, duration=1))[0]["videoUUID"]),
        providerSettings=part,
        lora=[ILora(model="film", weight=0.5)],
        settings=ISettings(enhancePrompt=True),
    )
    accepted = await client.videoInference(anew)
    seen["retake"] = [vars(video) for video in await client.getResponse(accepted.taskUUID)]
    both = await client.videoInference(IVideoInference(**SMALL, numberResults=2, deliveryMethod="sync"))
    seen["sync"] = [vars(video) for video in both]
    together = await asyncio.gather(*(made(client) for _ in range(5)))
    seen["together"] = [video for (video,) in together]
    seen["errors"] = {
        "model": await refused(made(client, model="runware:100@1")),
        "size": await refused(made(client, width=65)),
        "failed": await refused(made(client, positivePrompt="fail=out_of_memory")),
        "one of two": await refused(made(client, 2, positivePrompt="fail=worker_crashed")),
        "unknown": await refused(client.getResponse("3f4302eb-1dec-4885-ab35-c138a6095044")),
    }
    return seen


async def main(url: str, key: str, photo: str | None) -> dict[str, Any]:
    client = Runware(api_key=key, url=url)
    began = time.perf_counter()
    await client.connect()
    seen: dict[str, Any] = {"session": client._connectionSessionUUID}
    if photo is None:
        try:
            await client.ensureConnection()
            seen["text"] = await made(client)
        except ConnectionError as error:
            seen["error"] = str(error)
    else:
        seen |= await everything(client, photo)
        seen["pong"] = client._last_pong_time > began
    await client.disconnect()
    return seen


if __name__ == "__main__":
    _, url, key, *photo = sys.argv
    print(json.dumps(asyncio.run(main(url, key, photo[0] if photo else None))))
