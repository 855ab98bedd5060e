"""A folder of documents as passages: one file per format, each read in a process that may be lost.

| format | split at | title | place |
| --- | --- | --- | --- |
| text, reStructuredText | blank lines | underlined headings | lines, characters |
| Markdown | its blocks | headings, front matter | lines, characters |
| HTML | block elements | `<title>`, headings | line |
| PDF | pages, blank lines | its metadata | page |
| Python | functions, classes, methods | dotted name | lines, characters |
| other source code | blank lines, definitions | name of the definition | lines, characters |
| JSON Lines | one document a line | title, else id | line |
"""

from gradatim.tasks.documents.formats import FORMATS, format_of
from gradatim.tasks.documents.passages import Block, Passage, UnreadableError, pack
from gradatim.tasks.documents.reading import ReadFile, ReadLimits, read_files
from gradatim.tasks.documents.walking import FoundFile, Walk, walk

__all__ = [
    "FORMATS",
    "Block",
    "FoundFile",
    "Passage",
    "ReadFile",
    "ReadLimits",
    "UnreadableError",
    "Walk",
    "format_of",
    "pack",
    "read_files",
    "walk",
]
