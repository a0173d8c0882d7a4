"""Reports sent over TLS to dcmtk's storescp: by edge-report, and by edge-infer --pacs at the end of an exam."""

import json
import shutil
from pathlib import Path

import pydicom
import pytest
from certificates import Certificates
from daemon import record, run_command
from pacs import tls_store

pytestmark = pytest.mark.skipif(shutil.which("storescp") is None, reason="needs storescp (Debian package dcmtk)")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def run(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Return the recording of a daemon that sent its report over TLS, what has arrived, and what it said."""
    folder = tmp_path_factory.mktemp("run")
    cert, key = certificates.client
    with tls_store(folder / "arrived", certificates) as port:
        done = record(
            *("--source", "phantom:3", "--pace", "max", "--max-windows", "20", "--record", str(folder / "recording")),
            *("--state", str(folder / "state"), "--pacs", f"STORE@127.0.0.1:{port}"),
            *("--tls-cert", str(cert), "--tls-key", str(key), "--tls-ca", str(certificates.ca)),
        )
    assert done.exit_code == 0, done.stderr
    return folder / "recording", folder / "arrived", done.stderr


@pytest.mark.slow
def test_infer_sends_its_report_over_tls_with_its_own_certificate(run: tuple[Path, Path, str]) -> None:
    recording, arrived, said = run
    (exam,) = (recording / "exams").iterdir()
    made = {pydicom.dcmread(path).SOPInstanceUID for path in (exam / "report" / "dicom").glob("*.dcm")}
    assert "is stored at STORE@127.0.0.1" in said
    assert (exam / "stored.json").exists()
    assert len(made) > 3
    assert {pydicom.dcmread(path).SOPInstanceUID for path in arrived.iterdir()} == made


@pytest.mark.parametrize(
    ("store", "given", "said"),
    [
        ({"peers": "-ic"}, ["ca"], None),
        ({"peers": "-rc"}, ["ca"], "TLS: "),  # it asks for our certificate
        ({"peers": "-ic", "name": "stranger"}, ["ca"], "its certificate is not trusted (self-signed certificate)"),
        ({"peers": "-ic"}, ["cert", "key"], "its certificate is not trusted"),  # the system knows no such authority
        ({"peers": "-ic"}, [], "does it ask for TLS, see --tls-ca?"),
    ],
)
def test_report_over_tls_arrives_or_says_why_not(
    run: tuple[Path, Path, str],
    certificates: Certificates,
    tmp_path: Path,
    store: dict[str, str],
    given: list[str],
    said: str | None,
) -> None:
    files = {"ca": certificates.ca, "cert": certificates.client[0], "key": certificates.client[1]}
    tls = [text for name in given for text in (f"--tls-{name}", str(files[name]))]
    (exam,) = (run[0] / "exams").iterdir()
    shutil.copytree(exam / "report", tmp_path / "report")
    (tmp_path / "report" / "dicom" / "sent.json").unlink()
    with tls_store(tmp_path / "arrived", certificates, **store) as port:
        done = run_command(
            *(str(run[0]), "--send-only", "--out", str(tmp_path / "report"), "--timeout", "0"),
            *("--pacs", f"STORE@127.0.0.1:{port}", *tls),
            module="edge.report.cli",
        )
    num_objects = len(list((tmp_path / "report" / "dicom").glob("*.dcm")))
    if said is None:
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{num_objects} objects are stored" in done.stdout
        sent = json.loads((tmp_path / "report" / "dicom" / "sent.json").read_text())
        assert len(sent[f"STORE@127.0.0.1:{port}"]) == num_objects
    else:
        assert done.returncode == 3
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
        assert f"has not taken {num_objects} of the report's objects" in done.stderr
