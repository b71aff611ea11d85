"""What a mechanism's file says of it in its docstring, by parts."""

import inspect
import itertools
import re
from dataclasses import dataclass

DEVIATIONS, ERRORS, SOURCE = "Differs from the paper:", "Errors elsewhere:", "Source:"


@dataclass(frozen=True)
class Document:
    """A docstring in the order title, equation, prose, deviations, errors, source.

    Attributes:
        title: its first line.
        equation: what is set off by indentation, before the first of the parts below.
        description: the rest of the prose.
        deviations: from the paper, the paragraph that says so, or "".
        errors: of other implementations, likewise.
        source: authors, title, year and arXiv id.
    """

    title: str
    equation: str
    description: str
    deviations: str
    errors: str
    source: str


def read_document(docstring: str) -> Document:
    """The parts of a mechanism's docstring.

    >>> document = read_document('''Halving.
    ...
    ...     y = x / 2
    ...
    ... Every feature is halved.
    ...
    ... Errors elsewhere: some divide by three.
    ...
    ... Source: Nobody, "Halves" (2020), arXiv:2001.00001.
    ... ''')
    >>> document.equation, document.description, document.errors
    ('y = x / 2', 'Every feature is halved.', 'some divide by three.')
    """
    title, *paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(docstring))
    labelled = dict.fromkeys((DEVIATIONS, ERRORS, SOURCE), "")
    free = list(itertools.takewhile(lambda paragraph: not paragraph.startswith(tuple(labelled)), paragraphs))
    label = SOURCE
    for paragraph in paragraphs[len(free) :]:
        label = next((start for start in labelled if paragraph.startswith(start)), label)
        labelled[label] = f"{labelled[label]}\n\n{paragraph.removeprefix(label).strip()}".strip()
    equations = [paragraph for paragraph in free if paragraph.startswith(" ")]
    prose = [paragraph for paragraph in free if not paragraph.startswith(" ")]
    return Document(
        title.rstrip("."),
        "\n\n".join(inspect.cleandoc(f"\n{equation}") for equation in equations),
        "\n\n".join(prose),
        labelled[DEVIATIONS],
        labelled[ERRORS],
        labelled[SOURCE],
    )
