"""The keyframes as Secondary Capture: plain, and with the heatmap drawn in; and the heatmap's outline as a GSPS."""

import functools
from collections.abc import Callable, Sequence
from typing import cast

import cv2
import highdicom
import numpy as np
import numpy.typing as npt
from highdicom.pr import (
    AnnotationUnitsValues,
    ColorSoftcopyPresentationState,
    GraphicAnnotation,
    GraphicLayer,
    GraphicObject,
    GraphicTypeValues,
    GrayscaleSoftcopyPresentationState,
    TextObject,
)
from PIL import Image, ImageCms, ImageDraw, ImageFont
from pydicom.dataset import Dataset

from edge.exams.exam import ExamKeyframe, ExamSummary
from edge.picture import RgbImage, overlay
from edge.report.dicom_common import RESEARCH, Study, device, finding_of, instance

PLAIN_SERIES, HEATMAP_SERIES, OUTLINE_SERIES = 9101, 9102, 9103
_OUTLINE_LEVEL = 0.5
"""Of the window's peak."""
_MIN_FONT_PX, _MARGIN_PX, _INK = 5, 4, (255, 200, 80)


def plain_keyframe(summary: ExamSummary, study: Study, number: int) -> Dataset:
    """Return keyframe `number` (from 1) as it was recorded."""
    image = summary.keyframes[number - 1].image
    series = "Keyframes"
    return _capture(summary, study, image, series, PLAIN_SERIES, number)


def heatmap_keyframe(summary: ExamSummary, study: Study, number: int) -> Dataset:
    """Return keyframe `number` (from 1) with its heatmap and a line of text drawn in."""
    keyframe = summary.keyframes[number - 1]
    image = draw_heatmap(keyframe)
    captioned = _with_caption(image, (RESEARCH, f"{summary.finding} {keyframe.probability:.1%}"))
    return _capture(summary, study, captioned, "Keyframes with heatmap", HEATMAP_SERIES, number)


def outline(summary: ExamSummary, study: Study, number: int, plain: Dataset) -> Dataset:
    """Return a presentation state that outlines keyframe `number`'s heatmap on the plain picture."""
    keyframe = summary.keyframes[number - 1]
    layer = GraphicLayer("HEATMAP", order=1, description=f"Grad-CAM above half its peak. {RESEARCH}")
    text = TextObject(
        f"{finding_of(summary)} {keyframe.probability:.1%}\r\n{RESEARCH}",
        AnnotationUnitsValues.PIXEL,
        bounding_box=(1.0, 1.0, float(plain.Columns), min(24.0, float(plain.Rows))),
    )
    annotation = GraphicAnnotation(
        referenced_images=[plain], graphic_layer=layer, graphic_objects=_outlines(keyframe), text_objects=[text]
    )
    state = _presentation_state(plain)(
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


def _presentation_state(plain: Dataset) -> Callable[..., Dataset]:
    """Return the kind that may refer to this picture (PS3.3, A.33.1 and A.33.2)."""
    if plain.SamplesPerPixel == 1:
        return cast(Callable[..., Dataset], GrayscaleSoftcopyPresentationState)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # a display's profile by its class; DICOM asks for an input's, which has the same tags (ICC.1:2022, 8.3.3)
    return functools.partial(ColorSoftcopyPresentationState, icc_profile=profile[:12] + b"scnr" + profile[16:])


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
    if series_number == HEATMAP_SERIES:
        dataset.BurnedInAnnotation = (
            "YES"  # the caption; what else the ROI may hold is not known, of the plain one, too
        )
    dataset.DerivationDescription = f"frame {summary.keyframes[number - 1].index} of the exam"
    return dataset


def _with_caption(image: RgbImage, lines: Sequence[str]) -> RgbImage:
    """Add lines below the image: no pixel of it is covered, and no word is cut off."""
    return np.concatenate([image, *(_line(text, image.shape[1]) for text in lines)])


def _line(text: str, width: int) -> RgbImage:
    size = max(12, width // 40)
    while size > _MIN_FONT_PX and ImageFont.load_default(size).getlength(text) > width - 2 * _MARGIN_PX:
        size -= 1
    strip = Image.new("RGB", (width, round(1.5 * size)))
    ImageDraw.Draw(strip).text((_MARGIN_PX, size // 5), text, _INK, ImageFont.load_default(size))
    return np.asarray(strip)


def _outlines(keyframe: ExamKeyframe) -> list[GraphicObject]:
    if keyframe.map_hw is None:
        return []
    x, y, width, height = keyframe.map_rect
    smooth = cv2.resize(keyframe.map_hw, (width, height), interpolation=cv2.INTER_CUBIC)
    contours, _ = cv2.findContours(
        (smooth >= _OUTLINE_LEVEL).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    objects = []
    size_wh = keyframe.image.shape[1::-1]
    for contour in contours:
        points = contour[:, 0].astype(np.float64) + np.array((x + 0.5, y + 0.5))  # 0 is the first pixel's corner
        if len(points) >= 3:
            # the heatmap may reach beyond the picture; the outline may not
            closed = np.clip(np.concatenate([points, points[:1]]), 0, size_wh)
            objects.append(GraphicObject(GraphicTypeValues.POLYLINE, closed, AnnotationUnitsValues.PIXEL))
    return objects
