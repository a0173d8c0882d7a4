"""One HTML page from runs and evaluations, with everything in it; its pictures and tables also lie beside it."""

import datetime
import html
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jinja2
from markupsafe import Markup

from edge import __version__
from edge.commandline import NOTICE
from trainer.evaluation.folder import make_folder
from trainer.files import write_atomic
from trainer.report.entries import Contents, Entry, load_contents
from trainer.report.sections import Section, TrainingSection, Writer, between_of, section_of, training_of
from trainer.report.tables import ReportTable

_TEMPLATE = "report.html.j2"
_LIBRARIES = ("numpy", "scipy", "statsmodels", "scikit-learn", "matplotlib")


def write_report(paths: Sequence[Path], out: Path, title: str) -> list[Path]:
    """Write a report.

    Args:
        paths: Folders of evaluations and runs.
        out: The page; pictures and tables go into a folder of the same name with `_files`.
        title: Of the page.

    Returns:
        The page and the folder.

    Raises:
        ConfigError: A folder cannot be read, or the page's folder cannot be made.
    """
    contents = load_contents(paths)
    folder = out.with_name(f"{out.stem}_files")
    make_folder(folder)
    writer = Writer(folder)
    groups = group_by_videos(contents.entries)
    letters = [chr(ord("A") + place) for place in range(len(groups))]
    sections = [section_of(group, letter, writer) for group, letter in zip(groups, letters, strict=True)]
    trainings = [training_of(training, writer) for training in contents.trainings]
    page = _render(contents, sections, between_of(groups, letters, writer), trainings, title)
    write_atomic(out, page.encode())
    return [out, folder]


def group_by_videos(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Put the networks together that were measured on the same videos, in the order in which they come."""
    groups: dict[object, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.dataset_key, []).append(entry)
    return list(groups.values())


def _render(
    contents: Contents,
    sections: Sequence[Section],
    between: ReportTable | None,
    trainings: Sequence[TrainingSection],
    title: str,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment.get_template(_TEMPLATE).render(
        title=title,
        notice=NOTICE,
        version=__version__,
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        libraries=", ".join(f"{name} {metadata.version(name)}" for name in _LIBRARIES),
        num_networks=len({entry.name for entry in contents.entries}),
        sections=sections,
        between=between,
        trainings=trainings,
    )


def breakable(text: str) -> Markup:
    """Return escaped text whose paths and names may break over lines after / _ and -."""
    return Markup(re.sub(r"([/_-])", r"\1<wbr>", html.escape(text)))
