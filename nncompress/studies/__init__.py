"""The papers' experiments, run anew: `nncompress reproduce NAME`."""

from nncompress.studies.autoencoder import AUTOENCODER
from nncompress.studies.study import Request, Row, Study, StudyResult, Trial, plot
from nncompress.studies.summation import SUMMATION

STUDIES: dict[str, Study] = {each.name: each for each in (SUMMATION, AUTOENCODER)}

__all__ = ["STUDIES", "Request", "Row", "Study", "StudyResult", "Trial", "plot"]
