"""The keyframes as Secondary Capture: plain, and with the heatmap drawn in; and the heatmap's outline as a GSPS."""

import cv2
import highdicom
import numpy as np
import numpy.typing as npt
from highdicom.pr import (
    AnnotationUnitsValues,
    GraphicAnnotation,
    GraphicLayer,
    GraphicObject,
    GraphicTypeValues,
    TextObject,
)
from highdicom.pr import GrayscaleSoftcopyPresentationState as Gsps
from pydicom.dataset import Dataset

from edge.exams.exam import ExamKeyframe, ExamSummary
from edge.picture import RgbImage, overlay
from edge.report.dicom_common import RESEARCH, Study, device, instance

PLAIN_SERIES, HEATMAP_SERIES, OUTLINE_SERIES = 9101, 9102, 9103
_OUTLINE_LEVEL = 0.5
"""Of the window's peak."""


def plain_keyframe(summary: ExamSummary, study: Study, number: int) -> Dataset:
    """Return keyframe `number` (from 1) as it was recorded."""
    image = summary.keyframes[number - 1].image
    series = "Keyframes"
    return _capture(summary, study, image, series, PLAIN_SERIES, number)


def heatmap_keyframe(summary: ExamSummary, study: Study, number: int) -> Dataset:
    """Return keyframe `number` (from 1) with its heatmap and a line of text drawn in."""
    keyframe = summary.keyframes[number - 1]
    image = draw_heatmap(keyframe)
    captioned = _with_caption(image, f"{summary.finding} {keyframe.probability:.1%}  {RESEARCH}")
    return _capture(summary, study, captioned, "Keyframes with heatmap", HEATMAP_SERIES, number)


def outline(summary: ExamSummary, study: Study, number: int, plain: Dataset) -> Dataset:
    """Return a presentation state that outlines keyframe `number`'s heatmap on the plain picture."""
    keyframe = summary.keyframes[number - 1]
    layer = GraphicLayer("HEATMAP", order=1, description=f"Grad-CAM above half its peak. {RESEARCH}")
    text = TextObject(
        f"{summary.finding} {keyframe.probability:.1%}\r\n{RESEARCH}",
        AnnotationUnitsValues.PIXEL,
        bounding_box=(1.0, 1.0, float(plain.Columns), 24.0),
    )
    annotation = GraphicAnnotation(
        referenced_images=[plain], graphic_layer=layer, graphic_objects=_outlines(keyframe), text_objects=[text]
    )
    state = Gsps(
        referenced_images=[plain],
        **instance(summary, study, "outline", OUTLINE_SERIES, number),
        **device(),
        content_label="HEATMAP",
        content_description=RESEARCH,
        graphic_annotations=[annotation],
        graphic_layers=[layer],
    )
    state.Laterality = None  # not known
    state.SeriesDescription = "Heatmap outlines, research only"
    return state


def draw_heatmap(keyframe: ExamKeyframe) -> RgbImage:
    """Return the keyframe (H, W, 3) RGB with its heatmap over it."""
    image = keyframe.image if keyframe.image.ndim == 3 else np.repeat(keyframe.image[..., None], 3, axis=2)
    return image if keyframe.map_hw is None else overlay(image, keyframe.map_hw, keyframe.map_rect)


def _capture(
    summary: ExamSummary, study: Study, image: npt.NDArray[np.uint8], series: str, series_number: int, number: int
) -> Dataset:
    dataset: Dataset = highdicom.sc.SCImage(
        pixel_array=np.ascontiguousarray(image),
        photometric_interpretation="RGB" if image.ndim == 3 else "MONOCHROME2",
        bits_allocated=8,
        coordinate_system=highdicom.CoordinateSystemNames.PATIENT,
        patient_orientation=("L", "F"),  # asked for by the library; taken back below
        **instance(summary, study, series, series_number, number),
        **study.arguments(),
    )
    dataset.PatientOrientation = dataset.Laterality = None  # not known
    dataset.SeriesDescription = f"{series}, research only"
    dataset.ImageComments = RESEARCH
    dataset.BurnedInAnnotation = "YES" if series_number == HEATMAP_SERIES else "NO"
    dataset.DerivationDescription = f"frame {summary.keyframes[number - 1].index} of the exam"
    return dataset


def _with_caption(image: RgbImage, text: str) -> RgbImage:
    """Add a strip below the image: no pixel of it is covered."""
    scale = max(0.35, image.shape[1] / 1200)
    height = round(40 * scale) + 8
    strip = np.zeros((height, image.shape[1], 3), np.uint8)
    cv2.putText(strip, text, (6, height - 8), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 200, 80), 1, cv2.LINE_AA)
    return np.concatenate([image, strip])


def _outlines(keyframe: ExamKeyframe) -> list[GraphicObject]:
    if keyframe.map_hw is None:
        return []
    x, y, width, height = keyframe.map_rect
    smooth = cv2.resize(keyframe.map_hw, (width, height), interpolation=cv2.INTER_CUBIC)
    contours, _ = cv2.findContours(
        (smooth >= _OUTLINE_LEVEL).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    objects = []
    for contour in contours:
        points = contour[:, 0].astype(np.float64) + np.array((x + 1, y + 1))  # DICOM counts pixels from 1
        if len(points) >= 3:
            closed = np.concatenate([points, points[:1]])
            objects.append(GraphicObject(GraphicTypeValues.POLYLINE, closed, AnnotationUnitsValues.PIXEL))
    return objects
