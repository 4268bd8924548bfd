"""tests/interop/texts.py: for the scripts that compare tokenizers: the ids of ours, and texts on which tokenizers differ, if they do: many scripts, code, emoji, numbers, every kind of white space, and bytes that
are no UTF-8. A function of the seed alone."""
import os
import random
import struct
import subprocess
import sys
import unicodedata

# Categories of Unicode 14, which PCRE2 10.42 has; a later Python also keeps those of 3.2.
UNICODE = unicodedata if unicodedata.unidata_version == "14.0.0" else unicodedata.ucd_3_2_0


def assigned():
    """Code points by general category, surrogates and private use left out."""
    groups = {}
    for code in range(sys.maxunicode + 1):
        category = UNICODE.category(chr(code))
        if category not in ("Cn", "Cs", "Co"):
            groups.setdefault(category, []).append(chr(code))
    return groups


GROUPS = assigned()
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u180e\u2000\u2003\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff\x1c\x1d\x1e\x1f"
WORDS = """the of and Größe naïve façade don't it's I'LL we'VE CamelCase snake_case HTTPServer iPhone Straße ŁÓDŹ ǅungla ʻokina Éléphant
мир Привет ΑΒΓ αβγ ΣΊΣΥΦΟΣ שלום مرحبا العربية हिन्दी বাংলা ไทยภาษา ភាសា 한국어 日本語 カタカナ ひらがな 中文 你好世界 漢字 〇 々 ㊀ 、。 ー ㌔
①②③ ½ Ⅷ ٣٤٥ १२३ 12345678 3.14159 0x7fff 1e-10 ſ's K'd 'S 'ſ naïve e\u0301 n\u0303o \u0301 ﬁn ＡＢＣ ａｂｃ""".split()
EMOJI = "😀 👨‍👩‍👧‍👦 🇩🇪🇫🇷 👍🏽 ❤️ 🏳️‍🌈 1️⃣ ☕ 🧑🏿‍🚀 🫠".split()
CODE = ['for (size_t i = 0; i < count; i++) {\n    sum += values[i] * 2.5e-3f;\n}\n', 'def f(x, *args, **kw):\n\treturn {"a": [1, 2, x]}  # ok\r\n',
        '<div class="a">&nbsp;<!-- x --></div>\n\n\n', "SELECT * FROM t WHERE a='b''c' AND n>=10;", 'https://example.org/a?b=c&d=%20#e', '$$\\sum_{i=0}^{n}x_i^2$$',
        '#include <stdio.h>\n\n\n\tint main(void)\n', '{"k":null,"v":[true,false]}', "```python\nprint('''x''')\n```", '\\u0041\\n', '====----____....!!!???', "x'll y'RE z'Ve"]


def character(generator):
    return generator.choice(GROUPS[generator.choice(list(GROUPS))])


def part(generator):
    kind = generator.randrange(12)
    if kind < 3:
        return generator.choice(WORDS) + generator.choice(["", " ", "  ", ", ", ".\n", "'s", "'T", "-", "\u0301"])
    if kind == 3:
        return generator.choice(CODE)
    if kind == 4:
        return generator.choice(EMOJI) * generator.choice([1, 1, 2, 5])
    if kind == 5:
        return "".join(generator.choice(SPACES) for _ in range(generator.randrange(1, 8)))
    if kind == 6:
        return str(generator.randrange(10 ** generator.randrange(1, 18)))
    if kind == 7:
        return "".join(generator.choice(GROUPS[generator.choice(["Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc"])]) for _ in range(generator.randrange(1, 9)))
    if kind == 8:
        return chr(generator.randrange(0x4E00, 0x9FFD)) * generator.randrange(1, 4) + generator.choice(WORDS)
    if kind == 9:
        return generator.choice("aA1 \n.'漢ー\u0301") * generator.randrange(1, 40)
    return "".join(character(generator) for _ in range(generator.randrange(1, 6)))


def text(generator, length):
    """About `length` characters."""
    parts, size = [], 0
    while size < length:
        parts.append(part(generator))
        size += len(parts[-1])
    return "".join(parts)


def plain(generator, length):
    """About `length` characters of what people write, without combining marks: for a tokenizer that is no oracle."""
    def marked(word):
        return any(unicodedata.category(character).startswith("M") or character in "'ǅǋſ㊀" for character in word)
    words, emoji = [[word for word in group if not marked(word)] for group in (WORDS, EMOJI)]
    parts, size = [], 0
    while size < length:
        kind = generator.randrange(8)
        if kind < 6:
            text = generator.choice(words) + generator.choice([" ", " ", ", ", ".\n", "\n\n"])
        else:
            text = generator.choice(CODE + emoji + [str(generator.randrange(10 ** 9)), "  ", "\t", "don't ", "it's "]) + generator.choice(["", " "])
        parts.append(text)
        size += len(text)
    return "".join(parts)


def long_runs():
    """Pieces that are long without a cut: where an O(n²) merge would take for ever."""
    return ["a" * 100000, " " * 100000, "ab" * 50000, "\n" * 30000, "漢字" * 30000, "!?" * 40000, "Ab" * 30000, "กข" * 30000, "e\u0301" * 20000]


def break_bytes(generator, data, share):
    """`data` with about `share` of its bytes replaced, removed or doubled."""
    out = bytearray()
    for byte in data:
        if generator.random() >= share:
            out.append(byte)
            continue
        kind = generator.randrange(3)
        if kind == 0:
            out.append(generator.randrange(256))
        elif kind == 1:
            out += bytes([byte, byte])
    return bytes(out)


def generator(seed):
    return random.Random(seed)


class Judge:
    """Compares, counts, and says what differs."""

    def __init__(self, program):
        self.helper = os.path.join(os.path.dirname(os.path.abspath(program)), "tests", "tokenize_texts")
        self.checks = self.failures = 0

    def check(self, holds, what):
        self.checks += 1
        if not holds:
            self.failures += 1
            if self.failures < 20:
                print(f"failed: {what}")

    def run(self, checkpoint, items):
        """The ids of each (special, bytes), and what they decode to."""
        stream = b"".join(struct.pack("<BQ", special, len(data)) + data for special, data in items)
        done = subprocess.run([self.helper, checkpoint], input=stream, capture_output=True)
        if done.returncode:
            sys.exit(f"failed: tokenize_texts {checkpoint}: {done.stderr.decode()}")
        at, results = 0, []
        for _ in items:
            count, = struct.unpack_from("<Q", done.stdout, at)
            ids = list(struct.unpack_from(f"<{count}I", done.stdout, at + 8))
            at += 8 + 4 * count
            length, = struct.unpack_from("<Q", done.stdout, at)
            results.append((ids, done.stdout[at + 8:at + 8 + length]))
            at += 8 + length
        self.check(at == len(done.stdout), f"{checkpoint}: expected ids for {len(items)} texts, got more")
        return results

    def encode(self, checkpoint, items):
        return [ids for ids, _ in self.run(checkpoint, items)]

    def compare(self, checkpoint, what, items, expected, decoded=None):
        """`decoded`: what the peer makes of its ids; None in it where that is not compared."""
        self.check(len(items) == len(expected), f"{checkpoint}: {what}: {len(items)} texts, {len(expected)} of the peer")
        for (_, data), (ours, back), theirs, their_back in zip(items, self.run(checkpoint, items), expected, decoded or [None] * len(items)):
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
            self.check(ours == theirs, f"{checkpoint}: {what}: {data[:80]!r}: id {at}: {ours[at:at + 6]}, the peer has {theirs[at:at + 6]}")
            if their_back is not None and ours == theirs:
                self.check(back == their_back, f"{checkpoint}: {what}: {data[:80]!r}: decoded {back[:80]!r}, the peer has {their_back[:80]!r}")

    def finish(self):
        print(f"{self.checks} comparisons, {self.failures} failed")
        sys.exit(self.failures > 0 or self.checks == 0)
