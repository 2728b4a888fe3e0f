"""Writes golden_clip_text.json: ids of open_clip 3.3's tokenizer (with ftfy), up to the end token.

Run in an environment with open_clip_torch==3.3.0: python tests/data/make_golden_clip_text.py
"""

import json
from pathlib import Path

TEXTS = [
    "",
    " \n ",
    "It’s “quoted” text…",
    "cafe\N{COMBINING ACUTE ACCENT} naïve ÀÉ",
    "&lt;b&gt;bold&lt;/b&gt; &amp;amp; more",
    "don't we'll they've I'm you'd he's SHE'RE",
    "1234 2nd 3.14 ½ ² ① Ⅷ",
    "日本語のテキスト",
    "Привет мир ΟΔΟΣ İstanbul",
    "😀 emoji 👩\u200d👩\u200d👧 flag 🇫🇷",
    "a\tb\nc\u00a0d\u3000e",
    "ﬁne ﬂow ﬃ ﬅ ŉ ǆ ĳ ſ",
    "ＦＵＬＬ ｗｉｄｔｈ ｶﾅ",
    "word " * 200,
    "x" * 500,
    "!!!??? '''s '",
    "\x00\x07ctrl\ufeff",
    "a_b-c@d.e http://a.b/c?d=e&f=g",
    "المغرب हिन्दी",
    "Ünïcödé—dash–en",
]

if __name__ == "__main__":
    from open_clip.tokenizer import tokenize

    rows = [row[: int(row.argmax()) + 1].tolist() for row in tokenize(TEXTS)]
    Path(__file__).with_name("golden_clip_text.json").write_text(json.dumps(rows) + "\n", encoding="utf-8")
