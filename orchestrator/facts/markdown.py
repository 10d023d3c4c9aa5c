"""Plain data as Markdown that shows it as it is, also inside a table."""

import re
from collections.abc import Iterable, Sequence

#: What a line may begin with that makes it a list, a quotation or a rule.
_BEGINS = re.compile(r"^(\d*)(>|[-+=.)]+(?= |$))")
#: After which of them a site that shows Markdown finds a mention, an issue, a link, an emoji.
_FOUND = re.compile(r"@(?=\w)|#(?=\d)|\bGH(?=-\d)|:(?=//|[a-z+-][\w+-]*:)|\bwww(?=\.)")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def prose(text: str) -> str:
    r"""A comment or a docstring's text: what stands between backticks becomes code, everything else is plain.

    >>> prose("``lr`` moves the rest: 1 - |flip| of *.attn.*")
    '`lr` moves the rest: 1 - \\|flip\\| of \\*.attn.\\*'
    """
    plain, *rest = re.split(r"(`{1,2})(.+?)\1", text)
    pairs = zip(rest[1::3], rest[2::3], strict=True)
    return escape(plain) + "".join(code(inside) + escape(after) for inside, after in pairs)


def escape(text: str) -> str:
    r"""Plain text.

    >>> escape("x_max of _y <= [0, 1]")
    'x_max of \\_y \\<= \\[0, 1\\]'
    """
    text = re.sub(r"([\\`*|<&~$\[\]])", r"\\\1", re.sub(r"\s+", " ", text))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def inert(text: str) -> str:
    r"""Plain text to be shown anywhere, at the beginning of a line too, where nobody is called and nothing linked.

    What a site looks for in the text itself is parted by a space of no width: no backslash helps against that.

    >>> inert("# @ada on x.org: see https://x.org/#1")
    '\\# @&#8203;ada on x.org: see https:&#8203;//x.org/\\#&#8203;1'
    """
    text = escape(text.strip()).replace("#", r"\#")
    return _FOUND.sub(r"\g<0>&#8203;", _BEGINS.sub(r"\1\\\2", text))


def code(value: object) -> str:
    """A value as code, between more backticks than it holds in a row."""
    text = " ".join(str(value).split()).replace("|", r"\|")
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, gap = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{gap}{text}{gap}{fence}"


def number(value: float) -> str:
    """A positive number: small ones in full, powers of two as such, the rest to six digits.

    >>> number(448.0), number(2.0**-9), number(2.0**64), number(3.3895313892515355e38)
    ('448', '2^-9', '2^64', '3.38953e+38')
    """
    mantissa, exponent = value.hex().split("p")
    is_power = float.fromhex(mantissa + "p0") == 1
    if is_power and not 1 <= value < 2**20:
        return f"2^{int(exponent)}"
    return f"{value:.10g}" if value < 1e12 else f"{value:.6g}"
