"""The command `edge-display`: the bedside page in a browser."""

import asyncio
import dataclasses
import functools
import logging
import math
import re
import signal
import ssl
from pathlib import Path

from edge.client import DEFAULT_ADDRESS
from edge.commandline import Parser, ignore_signals, log_lines, run_command
from edge.curve import check_form
from edge.display.security import is_loopback, read_token
from edge.display.server import make_app, serve
from edge.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    connect: list[str]
    control: list[str]
    http: str
    token_file: Path | None
    allow_host: list[str]
    tls_cert: Path | None
    tls_key: Path | None
    curve: Path | None
    stale_ms: float
    vanish_ms: float

    def __post_init__(self) -> None:
        for address in (*self.connect, *self.control):
            check_form(address)
        if len(set(self.connect)) < len(self.connect) or len(set(self.control)) < len(self.control):
            raise ConfigError("--connect or --control names an address twice; give each daemon's once")
        if self.control and len(self.control) != len(self.connect):
            raise ConfigError(
                f"--control has {len(self.control)} addresses and --connect {len(self.connect)}; give one for each "
                "daemon, in the same order"
            )
        if not 0 < self.stale_ms <= self.vanish_ms < math.inf:
            raise ConfigError(
                f"--stale-ms is {self.stale_ms:g} and --vanish-ms {self.vanish_ms:g}; a result must turn stale before "
                "it vanishes, and both must be above 0"
            )
        for name in self.allow_host:
            if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
                raise ConfigError(
                    f"--allow-host is {name!r}; it must be a host's name alone, for example bed7.example: no scheme, "
                    "no port"
                )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key go together; give both or neither")
        if not is_loopback(self.host_and_port[0]) and self.token_file is None:
            raise ConfigError(
                f"--http {self.http} can be reached from other machines; add --token-file FILE (and --tls-cert, "
                "--tls-key), or leave it at 127.0.0.1 and put a reverse proxy before it (--allow-host)"
            )

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Where to serve."""
        host, colon, port = self.http.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ConfigError(f"--http is {self.http!r}; it must be HOST:PORT, for example 127.0.0.1:8080")
        return host.strip("[]"), int(port)


def main() -> int:
    """Run the command."""
    exit_code = run_command(lambda: _run(_parse()))
    ignore_signals()
    return exit_code


def _parse() -> Options:
    parser = Parser(
        "edge-display",
        "Serve the bedside page: live image, heatmap and probability of one or more daemons in a browser.",
        "edge-display --http 127.0.0.1:8080   (daemon: edge-infer --source demo --frames 30)",
    )
    add = parser.add_argument
    some = functools.partial(add, nargs="+", action="extend", default=[])
    some("--connect", metavar="ADDRESS", help=f"daemons ({DEFAULT_ADDRESS})")
    some("--control", metavar="ADDRESS", help="their --control sockets: exams from the page")
    add("--http", metavar="HOST:PORT", default="127.0.0.1:8080", help="where to serve (default: %(default)s)")
    add("--token-file", metavar="FILE", type=Path, help="a secret that browsers must show: http://HOST/?token=SECRET")
    some("--allow-host", metavar="NAME", help="names under which a reverse proxy serves the page")
    add("--tls-cert", metavar="PEM", type=Path, help="serve HTTPS with this certificate chain")
    add("--tls-key", metavar="PEM", type=Path, help="its private key")
    add("--curve", metavar="DIR", type=Path, help="keys from edge-keygen, for daemons that ask for them")
    add("--stale-ms", metavar="MS", type=float, default=500.0, help="age from which a result is stale (default: 500)")
    add("--vanish-ms", metavar="MS", type=float, default=2000.0, help="age from which it is not shown (default: 2000)")
    options = parser.parse_args()
    options.connect = options.connect or [DEFAULT_ADDRESS]
    return Options(**vars(options))


def _run(options: Options) -> int:
    log_lines(logging.INFO)
    token = read_token(options.token_file) if options.token_file else None
    asyncio.run(_serve(options, token, _tls(options)))
    return 0


async def _serve(options: Options, token: str | None, tls: ssl.SSLContext | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    app = make_app(
        options.connect,
        curve=options.curve,
        token=token,
        hosts=[name.lower() for name in options.allow_host],  # as browsers write it
        stale_ms=options.stale_ms,
        vanish_ms=options.vanish_ms,
        controls=dict(zip(options.connect, options.control, strict=False)),
    )
    await serve(app, *options.host_and_port, tls, stop)


def _tls(options: Options) -> ssl.SSLContext | None:
    if options.tls_cert is None or options.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except OSError as exc:  # an ssl.SSLError is one, too
        raise ConfigError(
            f"--tls-cert {options.tls_cert} and --tls-key {options.tls_key} cannot be used ({exc.strerror or exc}); "
            "give a PEM certificate and its key"
        ) from exc
    return context


if __name__ == "__main__":
    raise SystemExit(main())
