"""Small files that unfold to large ones, decoded in a process of their own to see what they cost.

Run as a script it does the decoding: ``python bombs.py image|audio|video FOLDER``.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ltx2.errors import LTX2Error
from ltx2.media.audio import decode_audio
from ltx2.media.images import decode_image
from ltx2.media.videofile import VideoLimits, inspect_video
from ltx2.settings import Settings
from processes import ROOT


def check_bombs(kind: str, bombs: Mapping[str, tuple[bytes, str]], folder: Path, *, seconds: float, mb: float) -> None:
    """Decode files in the order of their names; the first must be harmless.

    Each must end as said, in less than the seconds, and all together take less than the memory beyond the first.
    """
    for name, (data, _) in bombs.items():
        (folder / name).write_bytes(data)
    child = subprocess.run(
        [sys.executable, __file__, kind, str(folder)],
        env={"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stderr == ""
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    assert {name: outcome for name, outcome, _, _ in lines} == {name: outcome for name, (_, outcome) in bombs.items()}
    assert max(took for _, _, took, _ in lines) < seconds, lines
    assert lines[-1][3] - lines[0][3] < mb, lines


def outcome(kind: str, data: bytes) -> str:
    try:
        if kind == "image":
            return str(decode_image(data, field="image", max_megapixels=50).shape)
        if kind == "video":
            return str(inspect_video(data, field="video", limits=VideoLimits.of(Settings())).num_frames)
        decode_audio(data, field="audio", max_seconds=600)
    except LTX2Error as error:
        return error.code
    return "sound"


def peak_mb() -> float:
    """The most memory this process ever held."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[2]).iterdir()):
        data = path.read_bytes()
        began = time.perf_counter()
        ended = outcome(sys.argv[1], data)
        print(json.dumps([path.name, ended, round(time.perf_counter() - began, 2), peak_mb()]))  # noqa: T201
