"""Deterministic damage: a mutation is a function of its address, a kind of file and an index."""

import random

_NUMBERS = [
    number.to_bytes(4, order) for number in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF) for order in ("big", "little")
]
_WORDS = [
    b"1e999",
    b"nan",
    b"-1",
    b"99999999999999999999",
    b"[",
    b"}",
    b'""',
    b"null",
    b"-",
    b"*a",
    b"&a ",
    b"\xff\xfe",
    b"\0",
]


def mutated(content, kind, index):
    """Return a damaged copy of the content of a file.

    Args:
        content: The intact content.
        kind: Name of the seed.
        index: Number of the mutation.
    """
    source = random.Random(f"{kind}:{index}")
    damaged = bytearray(content)
    for _ in range(source.choice((1, 1, 1, 2, 4, 12))):
        source.choice(_MUTATIONS)(damaged, source)
    return bytes(damaged)


def _place(damaged, source):
    """Return an offset, half of the time in the first 100 bytes, which hold most headers."""
    return source.randrange(min(len(damaged), source.choice((100, len(damaged)))) + 1)


def _flip_bits(damaged, source):
    for _ in range(source.randint(1, 8)):
        if damaged:
            damaged[min(_place(damaged, source), len(damaged) - 1)] ^= 1 << source.randrange(8)


def _truncate(damaged, source):
    del damaged[_place(damaged, source) :]


def _remove_block(damaged, source):
    start = _place(damaged, source)
    del damaged[start : start + source.randint(1, 64)]


def _repeat_block(damaged, source):
    start, target = _place(damaged, source), _place(damaged, source)
    damaged[target:target] = damaged[start : start + source.randint(1, 256)] * source.choice((1, 1, 40))


def _splice(damaged, source):
    start, target, length = _place(damaged, source), _place(damaged, source), source.randint(1, 64)
    damaged[target : target + length] = damaged[start : start + length]


def _write_number(damaged, source):
    start, number = _place(damaged, source), source.choice(_NUMBERS)
    damaged[start : start + 4] = number


def _write_small_number(damaged, source):
    start = _place(damaged, source)
    damaged[start : start + 2] = source.choice((b"\0\0", b"\xff\xff", b"\0\x40", b"\x40\0", b"\x01\0"))


def _write_word(damaged, source):
    start = _place(damaged, source)
    damaged[start : start + source.choice((0, 1, 4, 8))] = source.choice(_WORDS)


def _swap_lines(damaged, source):
    lines = damaged.split(b"\n")
    first, second = source.randrange(len(lines)), source.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    damaged[:] = b"\n".join(lines)


def _swap_words(damaged, source):
    words = damaged.split(b" ")
    first, second = source.randrange(len(words)), source.randrange(len(words))
    words[first], words[second] = words[second], words[first]
    damaged[:] = b" ".join(words)


_MUTATIONS = (
    _flip_bits,
    _truncate,
    _remove_block,
    _repeat_block,
    _splice,
    _write_number,
    _write_small_number,
    _write_word,
    _swap_lines,
    _swap_words,
)
