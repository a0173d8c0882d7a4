"""Certificates for tests of TLS, made by openssl."""

import subprocess
from pathlib import Path

from edge.sources.options import SourceOptions


class Certificates:
    """An authority, and what it signed: a server's and a client's certificate; and a stranger's, signed by himself."""

    def __init__(self, folder: Path) -> None:
        self.ca, ca_key = folder / "ca.pem", folder / "ca.key"
        _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ca", "-keyout", ca_key, "-out", self.ca)
        self.server = self._signed(folder, "server", ca_key)
        self.client = self._signed(folder, "client", ca_key)
        self.stranger = folder / "stranger.pem", folder / "stranger.key"
        cert, key = self.stranger
        _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", key, "-out", cert)

    def _signed(self, folder: Path, name: str, ca_key: Path) -> tuple[Path, Path]:
        cert, key, request = folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}.csr"
        _openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        names = folder / f"{name}.ext"
        names.write_text(f"subjectAltName=DNS:{name}.example,IP:127.0.0.1\n")
        signer = ("-CA", self.ca, "-CAkey", ca_key, "-CAcreateserial", "-extfile", names)
        _openssl("x509", "-req", "-in", request, *signer, "-out", cert)
        return cert, key

    @property
    def options(self) -> SourceOptions:
        cert, key = map(str, self.server)
        return SourceOptions(is_realtime=False, tls_cert=cert, tls_key=key, tls_ca=str(self.ca))


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
