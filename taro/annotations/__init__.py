"""Annotations: one importer for each dataset format (importers.py), one linter for all (docs/annotations.md)."""

from __future__ import annotations

from taro.annotations.importers import DATASETS, Importer, LintPolicy, dataset_names, import_annotations
from taro.annotations.rows import AnnotationRow, Dropped, Kept, LintReport, Outcome, Repaired, Saliency

__all__ = ["DATASETS", "AnnotationRow", "Dropped", "Importer", "Kept", "LintPolicy", "LintReport", "Outcome",
           "Repaired", "Saliency", "dataset_names", "import_annotations"]
