"""Lets Orthanc store a cine and push it to a listener. Run in a network namespace of its own: it binds everywhere.

Arguments: a folder, the cine, and for TLS authority, client certificate and key; then the server's certificate and key.
"""

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from edge.sources.dicom.file import DicomFile
from edge.sources.options import SourceOptions
from tests.dicom_peer import AET, DEADLINE_S, listening

HTTP_PORT, DICOM_PORT = 18042, 14242


def main(folder: Path, cine: Path, *tls: str) -> None:
    """Print what came of it as JSON."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    server_cert, server_key = tls[-2:]
    is_tls = len(tls) > 2
    options = SourceOptions(is_realtime=False)
    if is_tls:
        options = SourceOptions(is_realtime=False, tls_cert=server_cert, tls_key=server_key, tls_ca=tls[0])
    with listening(folder / "spool", options) as scp:
        orthanc = subprocess.Popen(
            ["Orthanc", str(_configuration(folder, scp.port, tls if is_tls else ()))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            instance = _ask("instances", cine.read_bytes(), is_patient=True)["ID"]
            _ask("modalities/edge/store", instance.encode())
            scp.played.wait_for_objects(1)
        finally:
            orthanc.terminate()
            orthanc.wait(DEADLINE_S)
    frames, wanted = scp.played.frames, list(DicomFile(cine).frames())
    is_equal = all(np.array_equal(a.pixels, b.pixels) for a, b in zip(frames, wanted, strict=True))
    troubles = [trouble.message for trouble in scp.played.troubles]
    print(json.dumps({"frames": len(frames), "is_equal": is_equal, "troubles": troubles}))


def _configuration(folder: Path, port: int, tls: tuple[str, ...]) -> Path:
    modality = {"AET": AET, "Host": "127.0.0.1", "Port": port, "UseDicomTls": bool(tls)}
    configuration: dict[str, Any] = {
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "HttpPort": HTTP_PORT,
        "DicomPort": DICOM_PORT,
        "DicomModalities": {"edge": modality},
    }
    if tls:
        ca, cert, key = tls[:3]
        configuration |= {
            "DicomTlsCertificate": cert,
            "DicomTlsPrivateKey": key,
            "DicomTlsTrustedCertificates": ca,
        }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(configuration))
    return path


def _ask(path: str, body: bytes, *, is_patient: bool = False) -> Any:
    """POST; a patient asker waits until Orthanc is there."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{HTTP_PORT}/{path}", body, timeout=DEADLINE_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError:
            raise
        except OSError:
            if not is_patient or time.monotonic() > deadline_s:
                raise
            threading.Event().wait(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
