from collections import Counter

from tests.vectors.document import BEGIN, END, FILE, SECTIONS, written
from tests.vectors.table import every


def test_the_table_is_that_of_the_vectors() -> None:
    """The table in the document is the one that `python -m tests.vectors.document` writes."""
    text = FILE.read_text(encoding="utf-8")
    assert BEGIN in text
    assert END in text
    assert written(text) == text


def test_no_vector_is_there_twice() -> None:
    """Each vector has a name of its own, and each case distinct bytes."""
    vectors = [vector for _, vector in every(SECTIONS)]
    assert len({vector.name for vector in vectors}) == len(vectors) > 500
    tried = Counter((case.what, vector.sent, repr(vector.answering)) for case, vector in every(SECTIONS))
    assert [what for (what, _, _), number in tried.items() if number > 1] == []


def test_every_case_names_its_source() -> None:
    """Each case names a section of an RFC, or a law."""
    for section in SECTIONS:
        for case in section.cases:
            assert case.source.startswith(("RFC ", "law ")), case.what
