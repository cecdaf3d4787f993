from ebjdat.api import Classifier as Classifier
from ebjdat.api import load as load
from ebjdat.exporting import export as export

__version__: str
