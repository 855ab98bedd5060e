"""Reading a concept that somebody typed, without `eval`."""

from __future__ import annotations

import re

from gradatim.tasks.concepts import AND, NOT, OR, Concept

_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z]+\d*)|(?P<symbol>[&|~!()]))")
_WORDS = {"and": "&", "or": "|", "not": "~"}
_CODES = {"&": AND, "|": OR, "~": NOT}
_BINDS = {"|": 1, "&": 2, "~": 3}


def parse_concept(text: str, n_features: int | None = None) -> Concept:
    """The concept written as "x1 & (~x3 | x8)"; `and`, `or`, `not` and `!` are understood too.

    ~ binds before &, & before |; operators of one kind group from the left. "~x1" is one negative literal,
    "~(x1)" a NOT of a positive one, so that `parse_concept(str(c), c.n_features) == c`. Without `n_features`
    the highest feature mentioned is the last.

    Raises ValueError that names the position and what stood there.
    """
    tokens = _tokens(text)
    output: list[int] = []
    waiting: list[tuple[str, int]] = []  # operators and brackets, with their positions
    operand_next = True
    for k, (token, at) in enumerate(tokens):
        if token[0] == "x":
            _expect(operand_next, token, at, "an operator")
            feature = int(token[1:])
            if feature < 1 or (n_features is not None and feature > n_features):
                raise ValueError(f"position {at}: feature {token} does not exist, only x1 to x{n_features}")
            negative = bool(waiting) and waiting[-1][0] == "~" and k > 0 and tokens[k - 1][0] == "~"
            if negative:
                waiting.pop()
            output.append(2 * (feature - 1) + negative)
            operand_next = False
        elif token in ("~", "("):
            _expect(operand_next, token, at, "an operator")
            waiting.append((token, at))
        elif token == ")":
            _expect(not operand_next, token, at, "a literal")
            while waiting and waiting[-1][0] != "(":
                output.append(_CODES[waiting.pop()[0]])
            if not waiting:
                raise ValueError(f"position {at}: a closing bracket that was never opened")
            waiting.pop()
        else:
            _expect(not operand_next, token, at, "a literal")
            while waiting and waiting[-1][0] != "(" and _BINDS[waiting[-1][0]] >= _BINDS[token]:
                output.append(_CODES[waiting.pop()[0]])
            waiting.append((token, at))
            operand_next = True
    if operand_next:
        raise ValueError(f"the concept {text!r} ends where a literal is expected")
    for token, at in reversed(waiting):
        if token == "(":
            raise ValueError(f"position {at}: a bracket that is never closed")
        output.append(_CODES[token])
    width = max(code >> 1 for code in output if code >= 0) + 1 if n_features is None else n_features
    return Concept(width, tuple(output))


def _tokens(text: str) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    at = 0
    stripped = text.rstrip()
    while at < len(stripped):
        match = _TOKEN.match(stripped, at)
        if match is None:
            raise ValueError(f"position {at}: cannot read {stripped[at : at + 10]!r}")
        token = match.group("name") or match.group("symbol")
        token = _WORDS.get(token.lower(), "~" if token == "!" else token)
        if token[0].isalpha() and not re.fullmatch(r"x\d+", token):
            raise ValueError(f"position {match.start('name')}: literals are x1, x2 ..., got {token!r}")
        found.append((token, match.end() - len(match.group("name") or match.group("symbol"))))
        at = match.end()
    return found


def _expect(right: bool, token: str, at: int, what: str) -> None:
    if not right:
        raise ValueError(f"position {at}: expected {what}, got {token!r}")
