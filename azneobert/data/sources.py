"""Where documents come from: local files, or a data set of the Hugging Face hub."""

from __future__ import annotations

from azneobert.data.arrow_threads import settle_at_exit
from azneobert.data.hub import HubReader
from azneobert.data.local_files import FileReader
from azneobert.data.records import SourceReader
from azneobert.recipe import FileSource, Source


def open_source(source: Source) -> SourceReader:
    """The reader of a source: of a hub data set or of local files.

    Raises:
        DataError: there is nothing to read; the message says what to do.
    """
    settle_at_exit()
    return FileReader(source) if isinstance(source, FileSource) else HubReader(source)
