"""The command `edge-report`: an exam's results as a page for people and as DICOM objects for the clinic."""

import dataclasses
import logging
import math
import re
import ssl
from pathlib import Path

from edge.commandline import NOTICE, Parser, log_lines, one_line, run_command
from edge.errors import ConfigError, SourceError
from edge.report.address import parse_pacs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    recording: Path
    exam: str | None
    out: Path | None
    pacs: str | None
    patient_from: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None
    timeout: float
    send_only: bool

    def __post_init__(self) -> None:
        if self.exam is not None and not re.fullmatch(r"[A-Za-z0-9-]+", self.exam):
            raise ConfigError(f"--exam is {self.exam!r}; it must be an exam's id, for example 20260131-101500-a1b2c3")
        if not 0 <= self.timeout < math.inf:
            raise ConfigError(f"--timeout is {self.timeout}; it must be 0 s or more")
        if self.send_only and (self.pacs is None or self.patient_from is not None):
            raise ConfigError("--send-only sends a report as it was made: it needs --pacs, and takes no --patient-from")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key go together; give both or neither")


def main() -> int:
    """Run the command."""
    return run_command(lambda: _run(_parse()))


def _parse() -> Options:
    parser = Parser(
        "edge-report",
        "Turn a recorded exam into a page for people and DICOM objects, and send these to a PACS.",
        "edge-report exam-17 --pacs ORTHANC@127.0.0.1:4242",
    )
    add = parser.add_argument
    add("recording", metavar="EXAM", type=Path, help="what edge-infer --record DIR wrote")
    add("--exam", metavar="ID", help="of a recording of several exams, this one (their names: EXAM/exams)")
    add("--out", metavar="DIR", type=Path, help="where the report goes (default: EXAM/report, EXAM/exams/ID/report)")
    add("--pacs", metavar="AET@HOST:PORT", help="send the DICOM objects there, until all have arrived")
    add("--patient-from", metavar="DCM", type=Path, help="take patient and study from this image of the exam")
    add("--tls-cert", metavar="PEM", type=Path, help="send over TLS with this certificate")
    add("--tls-key", metavar="PEM", type=Path, help="its private key")
    add("--tls-ca", metavar="PEM", type=Path, help="whom to trust; alone, it is TLS without a certificate of our own")
    add("--timeout", metavar="S", type=float, default=60.0, help="how long to try to send (default: 60)")
    add("--send-only", action="store_true", help="send the report that was made before, as it is")
    return Options(**vars(parser.parse_args()))


def _run(options: Options) -> int:
    log_lines(logging.INFO)
    # imported only now: --help and a wrong option need none of it
    from edge.report.build import DICOM_FOLDER, has_report
    from edge.report.pacs import send

    pacs, tls = parse_pacs(options.pacs) if options.pacs else None, _tls(options)
    folder = options.out or _default_folder(options)
    if not options.send_only:
        _make(options, folder)
    if pacs is not None:
        if not has_report(folder):
            raise SourceError(f"{folder} holds no DICOM report: {_why_none(options)}")
        num_sent = send(folder / DICOM_FOLDER, pacs, tls=tls, patience_s=options.timeout)
        print(f"{num_sent} objects are stored at {pacs}")
    print(NOTICE)
    return 0


def _make(options: Options, folder: Path) -> None:
    from edge.exams.archive import notes_of
    from edge.exams.exam import summarise
    from edge.recording.reader import Recording
    from edge.report.build import PAGE_NAME, write_report
    from edge.report.dicom_common import study_of_file, study_without_patient

    summary = summarise(Recording(options.recording), options.exam)
    study = study_of_file(options.patient_from) if options.patient_from else study_without_patient(summary)
    if summary.exam_id is not None:
        summary = dataclasses.replace(summary, notes=notes_of(options.recording, summary.exam_id))
    if options.out is None:
        _refuse_way_out(options.recording, folder)
    write_report(summary, study, folder)
    told = f"{summary.finding} {summary.probability:.1%} over {summary.num_windows} windows: {folder / PAGE_NAME}"
    print(one_line(told))  # the finding is what somebody called it


def _refuse_way_out(recording: Path, folder: Path) -> None:
    """Refuse links in a recording, which may be somebody else's, that would have the report written elsewhere."""
    from edge.report.build import DICOM_FOLDER

    for inner in (folder, folder / DICOM_FOLDER):
        if not inner.resolve().is_relative_to(recording.resolve()):
            raise ConfigError(f"{inner} is a link out of the recording; remove it, or name a folder by --out")


def _why_none(options: Options) -> str:
    if options.send_only:
        return "make it first, without --send-only"
    return "no picture of a strong window was recorded, and it must refer to one; the page was made"


def _default_folder(options: Options) -> Path:
    from edge.exams.archive import report_folder

    return options.recording / "report" if options.exam is None else report_folder(options.recording, options.exam)


def _tls(options: Options) -> ssl.SSLContext | None:
    if options.tls_cert is None and options.tls_ca is None:
        return None
    try:
        context = ssl.create_default_context(cafile=options.tls_ca)
        if options.tls_cert is not None:
            context.load_cert_chain(options.tls_cert, options.tls_key)
    except OSError as exc:
        reason = exc.strerror or exc
        raise ConfigError(f"the TLS files cannot be used ({reason}); give PEM certificates and their key") from exc
    return context


if __name__ == "__main__":
    raise SystemExit(main())
