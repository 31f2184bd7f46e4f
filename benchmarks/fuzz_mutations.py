"""How the fuzzer changes an input: bytes, JSON trees, safetensors files and tars, the last two with right checksums.

Blind flips die at the first checksum. So a structure is also changed where it means something and then written as a
valid container: JSON with hostile values, a safetensors header of the right length that lies, a tar whose header has a
right checksum and a wrong field. Every function takes the generator of the one input that it makes.
"""

from __future__ import annotations

import copy
import json
import random
import tarfile
from collections.abc import Sequence
from typing import Any

TEXTS = [
    "", " ", "\x00", "a\x1b[2J\x1b]0;x\x07", "\u202egnp.exe", "\ud800", "\ufeff", "\u2028",
    "</script><script>x</script>", "../../../etc/passwd", "/etc/passwd", "..", ".", "C:\\x", "a/b",
    "%s%n{0}{query}", "[bold]x[/bold]", "=1+1", "nan", "1e999", "-1", "\n", "x" * 300, "x" * 70_000,
    "\u0130" * 50, "train", "1.0", "2.0", "<think>", "</answer>",
    "9" * 5000, "<|im_end|>", "01:02:03", "0.0s to 1.0s", "\r\n", "'\"`", "a\tb", "-" * 40, "\U0001f600",
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 7, 127, 255, 256, 511, 512, 513, 4096, 65_535, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63,
           -(2**63), 2**64, 10**30, 10**400, 0.0, -0.0, 0.5, 1.5, 1e-300, 1e18, 1e308, -1e308, float("inf"),
           float("-inf"), float("nan")]  # fmt: skip
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"": None}, [0, 1], [1.0, 0.0], [[0.0, 1.0]], ["a"]]
RAW = {"@deep@": "[" * 3000 + "]" * 3000, "@deeper@": '{"a":' * 40 + "1" + "}" * 40, "@digits@": "9" * 5000,
       "@exponent@": "1e400", "@twice@": '{"a":1,"a":2}'}  # fmt: skip
TOKENS = [
    b"\x00", b"\xff", b"\n", b"\r", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u0000", b"\\ud800", b"null",
    b"NaN", b"-", b"1e999", b"9" * 400, b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xae", b"\x1b[2J", b"../", b"PAR1",
    b"ustar", b"&a ", b"*a", b"<<: *a", b"!!python/object:os.system", b"---\n", b"\t", b"##", b"'", b"#",
]
INTEGERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


def value(rng: random.Random) -> Any:
    """A value that a parser may not expect."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(TEXTS)
    if kind < 0.65:
        return rng.choice(NUMBERS)
    return rng.choice(list(RAW)) if kind < 0.75 else copy.deepcopy(rng.choice(OTHERS))


def blob(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """One to six changes of bytes: flips, cuts, repeats, splices, tokens, integers of every width."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at, length = rng.randint(0, len(out)), rng.choice((1, 1, 2, 4, 8, 16, 64, 600))
        kind = rng.randrange(9)
        if kind == 0 and out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[rng.randrange(len(out))] = rng.randrange(256)
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[at : at + length] * rng.choice((1, 1, 2, 40))
        elif kind == 4:
            out[at:at] = rng.choice(TOKENS)
        elif kind == 5:
            del out[at:]
        elif kind == 6:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(INTEGERS) % 256**width
            out[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif kind == 7:
            other = rng.choice(others) if others else bytes(out)
            start = rng.randint(0, len(other))
            out[at:] = other[start:]
        else:
            out[at:at] = rng.randbytes(length)
    return bytes(out)


def tree(rng: random.Random, root: Any) -> Any:
    """A copy of a JSON value with one to three changes, each at a random place of it."""
    root = copy.deepcopy(root)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(root, []))
        if not places:
            return value(rng)
        holder, key = rng.choice(places)
        if isinstance(holder, dict) and key not in holder:
            continue
        kind = rng.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder[key:key] = [copy.deepcopy(holder[key])] * rng.choice((1, 2, 70))
        elif kind == 1:
            holder[rng.choice(TEXTS)] = holder[key]
        elif kind == 2:
            other, name = rng.choice(places)
            holder[key] = copy.deepcopy(other[name]) if isinstance(other, list) or name in other else value(rng)
        elif kind == 3:
            holder[key] = _nudged(rng, holder[key])
        elif kind == 4:
            holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, str(holder[key]), [holder[key]] * 2))
        else:
            holder[key] = value(rng)
        places = []
    return root


def _places(node: Any, _: list[Any]) -> Any:
    """(container, key) of every node below the root."""
    pairs = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    for key, inner in pairs:
        yield node, key
        yield from _places(inner, [])


def _nudged(rng: random.Random, old: Any) -> Any:
    if isinstance(old, bool) or old is None:
        return not old
    if isinstance(old, int | float):
        return rng.choice((old + 1, old - 1, -old, old * 2, old * 10**9, old // 3 if old == old else 0, f"{old!r:.99}"))
    if isinstance(old, str):
        at = rng.randint(0, len(old))
        return rng.choice((old[:at], old[:at] + rng.choice(TEXTS) + old[at:], old.upper(), old * 2))
    return rng.choice((list(old), None))


def dumped(root: Any) -> bytes:
    """JSON of a tree, hostile values (NaN, half surrogates, deep nesting, long digits, repeated keys) as they are."""
    text = json.dumps(root)
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text.encode()


def json_file(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A JSON file changed as a tree, as bytes, or both."""
    if rng.random() < 0.75:
        data = dumped(tree(rng, json.loads(data)))
    return blob(rng, data, others) if rng.random() < 0.35 else data


def json_lines(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A file of JSON lines with one line changed."""
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json_file(rng, lines[at], others)
    return b"\n".join(lines) + rng.choice((b"\n", b"\n", b"", b"\n\n"))


def tensors(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A safetensors file: header changed as JSON with its length right (or a lie), data changed, or bytes changed."""
    kind = rng.random()
    if kind < 0.2:
        return blob(rng, data, others)
    size = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + size], data[8 + size :]
    header = dumped(_header(rng, json.loads(header)) if kind < 0.9 else json.loads(header))
    if rng.random() < 0.2:
        rest = blob(rng, rest)
    length = len(header) if rng.random() < 0.9 else rng.choice(INTEGERS)
    return length.to_bytes(8, "little") + header + rest


def _header(rng: random.Random, header: dict[str, Any]) -> Any:
    if rng.random() < 0.5:
        return tree(rng, header)
    name = rng.choice([name for name in header if name != "__metadata__"] or ["a"])
    entry = header.setdefault(name, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
    field = rng.choice(("dtype", "shape", "data_offsets", "name", "swap"))
    if field == "dtype":
        entry["dtype"] = rng.choice(("F64", "F32", "BF16", "F16", "I64", "F8_E4M3", "BOOL", "f32", ""))
    elif field == "shape":
        entry["shape"] = rng.choice((entry["shape"][::-1], [2**32, 2**32], [0], [], [1] * 9, [*entry["shape"], 1],
                                     [-side for side in entry["shape"]], [2**24] * 4))  # fmt: skip
    elif field == "data_offsets":
        low, high = entry["data_offsets"]
        entry["data_offsets"] = rng.choice(([high, low], [low - 8, high], [low, high + 8], [0, 2**63], [low, low],
                                            [-1, 1], [low + 4, high + 4], [0, 2**40]))  # fmt: skip
    elif field == "name":
        header[rng.choice((*TEXTS, "main", "deepstack.0", "deepstack.9", "frames", "times_s"))] = header.pop(name)
    else:
        other = rng.choice([n for n in header if n != "__metadata__"] or ["a"])
        header[name], header[other] = header[other], header[name]
    return header


def tar(rng: random.Random, members: Sequence[tuple[str, bytes]], *, right: bool = False) -> bytes:
    """A tar of `members`: as the format wants it, or (unless `right`) with one hostile member or a changed order."""
    chosen, odd = list(members), -1
    if not right and chosen:
        odd = rng.randrange(len(chosen))
        if rng.random() < 0.3:
            chosen.insert(rng.randint(0, len(chosen)), chosen[odd])
    pieces = []
    for at, (name, data) in enumerate(chosen):
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), 0o644, 0
        style = tarfile.USTAR_FORMAT
        if at == odd:
            style = rng.choice((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
            _oddly(rng, info)
        try:
            pieces.append(info.tobuf(style, errors="surrogateescape") + data + bytes(-len(data) % 512))
        except (ValueError, UnicodeError):  # tarfile itself refuses to write that
            pieces.append(rng.randbytes(512))
    whole = b"".join(pieces)
    return whole + bytes(1024 + -(len(whole) + 1024) % 10240)


def _oddly(rng: random.Random, info: tarfile.TarInfo) -> None:
    kind = rng.randrange(8)
    if kind == 0:
        info.name = rng.choice(("../a.json", "/etc/passwd", "a/b.json", "x" * 200 + ".json", "a.json/", "\ud800.json",
                                "a.pkl", ".json", "a.json\x00b", "A" * 88 + ".safetensors"))  # fmt: skip
    elif kind == 1:
        info.size = max(0, info.size + rng.choice((-1, 1, 512, -512, 2**30, 8**11 - 1 - info.size, 2**33)))
    elif kind == 2:
        info.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE,
                                tarfile.BLKTYPE, tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE, tarfile.XHDTYPE,
                                tarfile.GNUTYPE_LONGNAME))  # fmt: skip
        info.linkname = rng.choice(("", "/etc/passwd", "../x"))
    elif kind == 3:
        info.pax_headers = {rng.choice(("path", "size", "comment", "GNU.sparse.size")): rng.choice(TEXTS[:12])}
    elif kind == 4:
        info.mode = rng.choice((0o777, 0o4755, 0))
    elif kind == 5:
        info.mtime = rng.choice((1, 2**33, 1.5))
    elif kind == 6:
        info.uid, info.uname = rng.choice((1, 2**22)), "root"
    else:
        info.name = info.name.replace("0", "1", 1)
