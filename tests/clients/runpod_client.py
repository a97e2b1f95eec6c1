"""What RunPod's own client sees of a server. Runs in the client's environment: it has runpod and nothing of ours.

Usage: ``runpod_client.py all|clip [URL of a server that wants keys] [program to run first]``, with
``RUNPOD_ENDPOINT_BASE_URL`` set. Prints JSON.
"""

import asyncio
import json
import runpy
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import requests
import runpod
from runpod import AsyncioEndpoint, AsyncioJob, http_client

SMALL = {"width": 64, "height": 64, "num_frames": 9}
LONG = {"input": SMALL | {"prompt": "seconds=60"}}


def body(prompt="x"):
    return {"input": SMALL | {"prompt": prompt}}


def short(output):
    """An output without most of its clip."""
    if isinstance(output, dict) and "video" in output:
        return output | {"video": output["video"][:60]}
    return output


def wait(job):
    """The states a job goes through, up to its last."""
    seen = [job.status()]
    while seen[-1] not in ("COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"):
        time.sleep(0.02)
        if job.status() != seen[-1]:
            seen.append(job.status())
    return seen


def clip(endpoint):
    job = endpoint.run(body())
    return {"states": wait(job), "output": short(job.output()), "sync": short(endpoint.run_sync(body(), timeout=60))}


def begun(endpoint):
    """A long job that runs."""
    job = endpoint.run(LONG)
    while job.status() != "IN_PROGRESS":
        time.sleep(0.02)
    return job


def everything(endpoint):
    seen = {"clip": clip(endpoint), "health": endpoint.health()}
    failed = endpoint.run(body("fail=out_of_memory"))
    seen["failed"] = {"states": wait(failed), "output": failed.output()}
    seen["failed at once"] = endpoint.run_sync(body("fail=out_of_memory"))
    # without "input" around it the client puts one there
    seen["bare"] = short(endpoint.run_sync(SMALL | {"prompt": "bare"}))
    try:
        endpoint.run({"input": {"prompt": ""}})
    except requests.HTTPError as error:
        seen["refused"] = [error.response.status_code, error.response.json()]

    running = begun(endpoint)
    seen["progress"] = running.output()
    waiting = [endpoint.run(body()) for _ in range(3)]
    seen["waiting"] = [job.status() for job in waiting]
    seen["cancelled while it waits"] = [waiting[0].cancel()["status"], waiting[0].status()]
    seen["purged"] = endpoint.purge_queue()
    seen["after"] = [job.status() for job in waiting]
    seen["cancelled"] = [running.cancel() == {"id": running.job_id, "status": "CANCELLED"}, running.status()]

    done = endpoint.run(body())
    wait(done)
    with ThreadPoolExecutor() as pool:  # a stream sleeps a second before it asks
        streams = [pool.submit(lambda job=job: [short(chunk) for chunk in job.stream()]) for job in (done, running)]
        seen["asyncio"] = asyncio.run(at_once())
        seen["stream"], seen["stream of a cancelled job"] = [stream.result() for stream in streams]
    return seen


async def at_once():
    async with http_client.AsyncClientSession() as session:
        endpoint = AsyncioEndpoint("local", session)
        seen = {"purged": await endpoint.purge_queue()}
        job = await endpoint.run(SMALL | {"prompt": "seconds=1.5"})
        seen["health"] = await endpoint.health()
        assert isinstance(job, AsyncioJob)
        chunks, output = await asyncio.gather(listened(job), job.output(timeout=30))
        seen |= {"stream": chunks, "output": short(output), "status": await job.status()}
        other = await endpoint.run(LONG["input"])
        seen["cancelled"] = [(await other.cancel())["status"], await other.status()]
        return seen


async def listened(job):
    return [short(chunk) async for chunk in job.stream()]


def keys(url):
    runpod.endpoint_url_base = url
    seen = {"right": runpod.Endpoint("local", "right").health()["jobs"]}
    try:
        runpod.Endpoint("local", "wrong").health()
    except RuntimeError as error:
        seen["wrong"] = str(error)
    return seen


if __name__ == "__main__":
    what, *others = sys.argv[1:]
    if others[1:]:
        runpy.run_path(others[1])
    runpod.api_key = "any"
    answer = {"clip": clip, "all": everything}[what](runpod.Endpoint("local"))
    if others:
        answer["keys"] = keys(others[0])
    json.dump(answer, sys.stdout)
