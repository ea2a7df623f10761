"""Text from outside, made harmless before a terminal gets it."""


def harmless(text: str, keep: str = "") -> str:
    """`text` in which every character that is not printable, but for those in `keep`, is spelled as Python does.

    So a name in a file can't move the cursor, change colours, or turn what stands beside it around.
    """
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)
