"""`make demo`: the real daemon on a real cine, with the terminal view in front and a picture at the end."""

import subprocess
import sys
import tempfile
from pathlib import Path

from edge.commandline import Parser, run_command
from edge.errors import ConfigError, EdgeError

_FRAMES_HZ = "30"  # a picture of each frame, the keyframe among them
_END_S = 5.0


def main() -> int:
    """Run the demo."""
    return run_command(_run)


def _run() -> int:
    parser = Parser("make demo", "Play a real echo cine through the whole pipeline.", "make demo SECONDS_TO_PLAY=60")
    parser.add_argument("--seconds", metavar="S", type=float, default=20.0, help="how long to play (default: 20)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("demo-output"), help="for the picture and log")
    parser.add_argument("--source", metavar="URI", default="demo", help="what to play (default: demo)")
    options = parser.parse_args()
    if not options.seconds > 0:
        raise ConfigError(f"SECONDS_TO_PLAY is {options.seconds:g}; it must be above 0")
    options.out.mkdir(parents=True, exist_ok=True)
    picture, log = options.out / "strongest-window.png", options.out / "edge-infer.log"
    picture.unlink(missing_ok=True)
    _introduce(options.source, options.seconds)
    _play(options.source, options.seconds, picture, log)
    print(f"\npicture of the strongest window: {picture}   daemon's log: {log}")
    print("next: edge-infer --source YOUR_VIDEO in one terminal, edge-watch in another (both are in .venv/bin)")
    return 0


def _introduce(source: str, seconds: float) -> None:
    what = "the real echo cine that ships with pydicom" if source == "demo" else source
    print(f"Playing {what} for {seconds:g} s: edge-infer (daemon) -> ZeroMQ -> edge-watch (this view).")
    print("The demo network was trained on synthetic phantom sweeps alone: its probability means nothing here.")


def _play(source: str, seconds: float, picture: Path, log: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="edge-demo-") as folder, log.open("wb") as log_stream:
        address = f"ipc://{folder}/socket"
        play = ["--source", source, "--publish", address, "--frames", _FRAMES_HZ, "--loop"]
        play += ["--wait-subscribers", "1", "--duration", f"{seconds}"]
        daemon = subprocess.Popen([sys.executable, "-m", "edge.cli", *play], stderr=log_stream)
        show = ["--connect", address, "--snapshot", str(picture)]
        watch = subprocess.Popen([sys.executable, "-m", "edge.watch.cli", *show])
        try:
            exit_code = daemon.wait()
            watch.wait(_END_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end(watch)
            _end(daemon)
    if exit_code != 0:
        raise EdgeError(f"the daemon ended with exit code {exit_code}: {log.read_text().strip().splitlines()[-1:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
