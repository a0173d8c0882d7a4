"""What may change while a stream runs and stands in its messages: operating threshold, exam, and its trouble."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class ExamMark:
    """An exam as the messages name it."""

    id: str
    started_wall_ns: int
    first_index: int
    """Of the stream's frames: a window that holds an earlier one is not the exam's."""

    def header(self) -> dict[str, Any]:
        """Return the `exam` map of predictions and status."""
        return {"id": self.id, "started_wall_ns": self.started_wall_ns}


class Terms:
    """Changed by whoever holds the exam keeper's lock, read by all: each field is replaced as a whole."""

    def __init__(self, threshold: float) -> None:
        """Start with the bundle's threshold and without an exam."""
        self.threshold = threshold
        self.exam: ExamMark | None = None
        self.exam_trouble: str | None = None
        """Why the exam is not on disk as it is now; None while all is well."""

    def header(self) -> dict[str, Any]:
        """Return what a status says of them."""
        exam = self.exam
        mark = exam.header() if exam else None
        return {"threshold": self.threshold, "exam": mark, "exam_trouble": self.exam_trouble}
