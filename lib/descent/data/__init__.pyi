from .datasets import Dataset as Dataset
from .datasets import load_dataset as load_dataset
from .datasets import standardise as standardise
from .fetching import DamagedDataError as DamagedDataError
from .fetching import MissingDataError as MissingDataError
