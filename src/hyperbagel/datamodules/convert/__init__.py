"""Open data sets, in the formats they are published in, to shards that `InterleavedDataModule` reads."""

from hyperbagel.datamodules.convert.errors import BadRowError, FormatError, RowCause, TooManyBadRowsError
from hyperbagel.datamodules.convert.folder import CaptionFields, convert_folder
from hyperbagel.datamodules.convert.journeydb import convert_journeydb
from hyperbagel.datamodules.convert.llava_onevision import convert_llava_onevision
from hyperbagel.datamodules.convert.options import ConvertOptions
from hyperbagel.datamodules.convert.reports import ConversionSummary
from hyperbagel.datamodules.convert.seed_data_edit import convert_seed_data_edit

__all__ = [
    "BadRowError",
    "CaptionFields",
    "ConversionSummary",
    "ConvertOptions",
    "FormatError",
    "RowCause",
    "TooManyBadRowsError",
    "convert_folder",
    "convert_journeydb",
    "convert_llava_onevision",
    "convert_seed_data_edit",
]
