"""The DICOM listener with TLS on both sides, and with Orthanc as the sender."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
import pydicom.examples
import pytest
from certificates import Certificates

from edge.errors import ConfigError
from edge.sources import open_source
from edge.sources.dicom import guard as dicom_guard
from edge.sources.options import SourceOptions
from tests.dicom_peer import AET, RawPeer, dcmtk, listening, storescu
from tests.source_files import dataset, noise, write_dicom

CINE = Path(str(pydicom.examples.get_path("ybr_color")))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def cine(tmp_path: Path) -> Path:
    return write_dicom(tmp_path / "cine.dcm", dataset(noise(30, 32, 32)))


def test_tls_peer_with_a_certificate_is_served(tmp_path: Path, certificates: Certificates, cine: Path) -> None:
    cert, key = map(str, certificates.client)
    tls = ("+tls", key, cert, "+cf", str(certificates.ca))
    with listening(tmp_path / "spool", certificates.options) as scp:
        assert dcmtk("echoscu", *tls, "-aec", AET, "127.0.0.1", str(scp.port)).returncode == 0
        assert storescu(scp.port, cine, cine, options=tls) == 0
        scp.played.wait_for_objects(2)


def test_tls_peer_without_a_good_certificate_is_refused(tmp_path: Path, certificates: Certificates, cine: Path) -> None:
    cert, key = map(str, certificates.stranger)
    with listening(tmp_path / "spool", certificates.options) as scp:
        assert storescu(scp.port, cine, options=("+tla", "+cf", str(certificates.ca))) != 0
        assert storescu(scp.port, cine, options=("+tls", key, cert, "+cf", str(certificates.ca))) != 0
        assert storescu(scp.port, cine) != 0
        scp.played.wait_for_trouble("bad_peers", 3)
        assert scp.played.num_ended == 0


def test_tls_handshake_that_never_ends_hinders_nobody(
    tmp_path: Path, certificates: Certificates, cine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_guard, "PDU_DEADLINE_S", 1.0)
    cert, key = map(str, certificates.client)
    with listening(tmp_path / "spool", certificates.options) as scp:
        with RawPeer(scp.port) as slow:
            slow.send(b"\x16\x03\x01")
            assert storescu(scp.port, cine, options=("+tls", key, cert, "+cf", str(certificates.ca))) == 0
            assert slow.is_hung_up_on()
        scp.played.wait_for_objects(1)


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key", "tls_ca"])
def test_tls_in_part_is_refused(certificates: Certificates, tmp_path: Path, missing: str) -> None:
    given = {name: getattr(certificates.options, name) for name in ("tls_cert", "tls_key", "tls_ca")}
    with pytest.raises(ConfigError, match="give all three"):
        open_source(f"dicom://127.0.0.1:0?spool={tmp_path}", options=SourceOptions(**{**given, missing: None}))


def test_tls_key_of_another_certificate_is_refused(certificates: Certificates, tmp_path: Path) -> None:
    options = SourceOptions(
        tls_cert=str(certificates.server[0]), tls_key=str(certificates.client[1]), tls_ca=str(certificates.ca)
    )
    with pytest.raises(ConfigError, match="cannot be used"):
        open_source(f"dicom://127.0.0.1:0?spool={tmp_path}", options=options)


@pytest.mark.skipif(shutil.which("Orthanc") is None, reason="needs Orthanc (apt-get install orthanc)")
@pytest.mark.parametrize("is_tls", [pytest.param(False, marks=pytest.mark.slow), True])
def test_orthanc_sends_what_it_stored(tmp_path: Path, certificates: Certificates, is_tls: bool) -> None:
    """Runs in a network namespace of its own: Orthanc binds all interfaces."""
    cert, key = certificates.client
    arguments = [str(tmp_path), str(CINE), *([str(certificates.ca), str(cert), str(key)] if is_tls else [])]
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-m", "tests.dicom_orthanc", *arguments, *map(str, certificates.server)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("needs the right to make a network namespace")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"frames": 30, "is_equal": True, "troubles": []}
