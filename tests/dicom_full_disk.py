"""Sends objects to a listener whose spool is on a disk of 1 MiB. Run in a mount namespace of its own."""

import subprocess
import sys
from pathlib import Path

from tests.dicom_peer import RawPeer, data_set_bytes, listening
from tests.source_files import dataset, noise, write_dicom


def main() -> None:
    """Print the statuses of two objects of 600 kB, and what is in the spool then."""
    folder = Path(sys.argv[1])
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    sent = data_set_bytes(write_dicom(folder / "a.dcm", dataset(noise(150, 64, 64))))
    with listening(disk / "spool", is_played=False) as scp, RawPeer(scp.port) as peer:
        peer.associate()
        statuses = [hex(peer.store(sent, f"1.2.3.{number}")) for number in (1, 2)]
        peer.release()
        num_incoming = len(list((scp.spool / "incoming").iterdir()))
        print("statuses", *statuses, "waiting", len(scp.waiting()), "incoming", num_incoming)


if __name__ == "__main__":
    main()
