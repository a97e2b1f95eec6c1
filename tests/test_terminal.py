import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from processes import ROOT

CODE = """
from ltx2.engine import Progress
from ltx2.terminal import TerminalProgress
with TerminalProgress() as show:
    for progress in (Progress("queued"), Progress("loading"), Progress("denoising", 5, 8), Progress("muxing")):
        show(progress)
"""


def test_a_terminal_shows_the_phase_and_the_steps() -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, stderr=follower, check=True)
    os.close(follower)
    shown = b""
    while True:
        try:
            block = os.read(leader, 65_536)
        except OSError:  # the other end is closed and everything was read
            break
        if not block:
            break
        shown += block
    os.close(leader)
    assert done.returncode == 0
    for said in (b"queued", b"loading", b"denoising 5/8", b"muxing"):
        assert said in shown
    assert shown.rstrip(b" ").endswith(b"\r")  # the bar is gone when it is over


def test_nothing_is_drawn_where_there_is_no_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, check=True)
    assert done.stderr == b""
