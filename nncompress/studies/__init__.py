"""The papers' experiments, run anew: `nncompress reproduce NAME`."""

from nncompress.studies.approximation import APPROXIMATION
from nncompress.studies.autoencoder import AUTOENCODER
from nncompress.studies.convolution_alternatives import CONVOLUTION_ALTERNATIVES
from nncompress.studies.growth.cifar100 import CIFAR100_GROWTH
from nncompress.studies.growth.mnist import MNIST_GROWTH
from nncompress.studies.growth.sine import SINE
from nncompress.studies.quantization import QUANTIZATION
from nncompress.studies.sharesnet import SHARESNET
from nncompress.studies.small_model import SMALL_MODEL
from nncompress.studies.study import Request, Row, Study, StudyResult, Trial, check_plot, plot
from nncompress.studies.summation import SUMMATION

_ALL = (
    SUMMATION,
    AUTOENCODER,
    CONVOLUTION_ALTERNATIVES,
    SMALL_MODEL,
    APPROXIMATION,
    QUANTIZATION,
    SHARESNET,
    SINE,
    MNIST_GROWTH,
    CIFAR100_GROWTH,
)
STUDIES: dict[str, Study] = {each.name: each for each in _ALL}

__all__ = ["STUDIES", "Request", "Row", "Study", "StudyResult", "Trial", "check_plot", "plot"]
