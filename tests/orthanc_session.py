"""Runs edge-report against an Orthanc, in a network namespace of its own, for Orthanc binds every interface.

    unshare -n python -m tests.orthanc_session EXAM FOLDER [CA SERVER_CERT SERVER_KEY CERT KEY]

With certificates over TLS, where each side asks for the other's.

Prints as JSON: what each of three runs of edge-report said, and what Orthanc holds at the end.
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

DICOM_PORT, HTTP_PORT = 4242, 8042
DEADLINE_S = 30.0


def report(exam: str, out: Path, timeout_s: float, tls: list[str]) -> dict[str, Any]:
    """Run edge-report to its end."""
    command = [sys.executable, "-m", "edge.report.cli", exam, "--out", str(out), "--timeout", str(timeout_s)]
    command += ["--pacs", f"ORTHANC@127.0.0.1:{DICOM_PORT}"]
    if tls:
        ca, _, _, cert, key = tls
        command += ["--tls-ca", ca, "--tls-cert", cert, "--tls-key", key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return {"exit_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def start_orthanc(folder: Path, tls: list[str]) -> subprocess.Popen[bytes]:
    """Start Orthanc with a store of its own."""
    config = folder / "orthanc.json"
    settings: dict[str, Any] = {
        "StorageDirectory": str(folder / "store"),
        "IndexDirectory": str(folder / "store"),
        "DicomPort": DICOM_PORT,
        "HttpPort": HTTP_PORT,
        "DicomAet": "ORTHANC",
        "AuthenticationEnabled": False,
        "RemoteAccessAllowed": False,
        "OverwriteInstances": True,
        "Plugins": [],
    }
    if tls:
        ca, cert, key, *_ = tls
        settings |= {
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": cert,
            "DicomTlsPrivateKey": key,
            "DicomTlsTrustedCertificates": ca,
            "DicomTlsRemoteCertificateRequired": True,
        }
    config.write_text(json.dumps(settings), encoding="utf-8")
    return subprocess.Popen(["Orthanc", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def get(path: str) -> Any:
    """Ask Orthanc's REST interface; waits until it is up."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{HTTP_PORT}{path}", timeout=5) as answer:
                return json.loads(answer.read())
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline_s:
                raise


def main() -> None:
    exam, folder, tls = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    runs = [report(exam, folder / "report", timeout_s=0, tls=tls)]
    orthanc = start_orthanc(folder, tls)
    try:
        get("/system")
        runs += [report(exam, folder / "report", timeout_s=20, tls=tls) for _ in range(2)]
        stored = [get(f"/instances/{instance}/simplified-tags") for instance in get("/instances")]
    finally:
        orthanc.terminate()
        orthanc.wait()
    kept = ("SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "Modality")
    print(json.dumps({"runs": runs, "stored": [{key: tags.get(key) for key in kept} for tags in stored]}))


if __name__ == "__main__":
    main()
