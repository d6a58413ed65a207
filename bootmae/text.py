"""Words of messages: counts, and file names that may not be text."""


def count_of(number: int, singular: str, plural: str | None = None) -> str:
    """Return a count with its noun: ``1 fault``, ``0 faults``, ``1,200 images``.

    Args:
        number: The count.
        singular: The noun for one.
        plural: The noun for other counts, by default ``singular`` with an s.
    """
    return f'{number:,} {singular if number == 1 else plural or singular + "s"}'


def printable(path: str) -> str:
    r"""Return a file name as one line of text that every file and terminal takes.

    Bytes of a name that are not valid UTF-8 are shown as ``\xe9``, line breaks and tabs as ``\n`` and ``\t``.
    """
    text = path.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')
    return text.replace('\n', r'\n').replace('\r', r'\r').replace('\t', r'\t')
