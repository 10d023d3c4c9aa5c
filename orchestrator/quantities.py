"""Bytes and seconds as a reader wants them."""

import math


def size(number: float) -> str:
    """Bytes to two digits.

    >>> size(1_234), size(45_600_000), size(2.34e12)
    ('1.2 kB', '46 MB', '2.3 TB')
    """
    power = min(4, int(math.log(max(number, 1), 1000)))
    scaled = number / 1000**power
    return f"{scaled:.{int(scaled < 10)}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def clock(seconds: float) -> str:
    """Whole seconds as a clock shows them.

    >>> clock(59.9), clock(61), clock(90_061)
    ('0:59', '1:01', '25:01:01')
    """
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
