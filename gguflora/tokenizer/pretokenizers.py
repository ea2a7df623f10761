r"""Data: how each `tokenizer.ggml.pre` cuts text into words before byte-pair merges, as llama.cpp does it.

Numbers beside rows are lines of llama.cpp's src/llama-vocab.cpp, as vendored in llama-cpp-python 0.3.36: beside a
list of patterns, the case that has them (llm_tokenizer_bpe); beside a name, the branch that chooses it
(llama_vocab::impl::load).

The patterns of one row apply in turn, each to the pieces that the one before left; what a pattern matches and what
lies between two matches are both pieces. They stand as in llama.cpp but for these changes, which make the regex engine
of `tokenizers` (Oniguruma) cut as llama.cpp's own code does:

- `\p{Lu}`, `\p{Ll}` and the other letter classes are `\p{L}`: llama.cpp sees no case outside ASCII
  (unicode_regex_split in src/unicode.cpp collapses a letter to one byte).
- `\d` is `[0-9]`, as in the C locale.
- grouping digits from the right (unicode_regex_split_custom_afmoe) is a pattern here; it leaves the text before a
  number in one piece with the number's first group, so the pattern does too.
- a range of code points does not hold white space: llama.cpp makes that U+000B before it matches.
- a letter, mark, number, punctuation or symbol is what Unicode 15.0 says it is: `as_of_unicode_15`.

tests/tokenizer/test_pretokenizers.py holds every row against the live llama.cpp. The names whose tokens are characters,
not in the byte alphabet of GPT-2, have rows of their own: OF_CHARACTERS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokenizer:
    """What llama.cpp ties to a `pre` name.

    Attributes:
        patterns: regexes in the syntax of Oniguruma.
        ignore_merges: a word that is a token as a whole becomes that token, whatever the merges say.
        add_bos: whether BOS is added where the file does not say.
        has_default_bos: whether BOS has an id (llama.cpp's 11) where the file does not say.
        needs_merges: whether the file must have merges.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    has_default_bos: bool = True
    needs_merges: bool = True


@dataclass(frozen=True)
class CharacterPreTokenizer:
    """What llama.cpp ties to a `pre` name whose tokens are text as it stands (byte_encode = false).

    Attributes:
        words: what it matches is a word; what lies between two matches is left out.
        space: what a space becomes before that, and what it is in tokens.
        whole_line_ends: line ends in a row that are a token become that token, whatever the merges say.
        always_bos: BOS is added whatever the file says.
    """

    words: re.Pattern[str]
    space: str
    whole_line_ends: bool = False
    always_bos: bool = False


DEFAULT = "default"
"""llama.cpp's choice for a file without `tokenizer.ggml.pre` (2159)."""

# Parts that many patterns share.
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_OR_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_ASCII_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_MARKED_WORD = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_BIG_LETTERS = r"((?=[\p{L}])([^a-z]))"
_SMALL_LETTERS = r"((?=[\p{L}])([^A-Z]))"
_CASED_WORD_1 = rf"[^\r\n\p{{L}}\p{{N}}]?{_BIG_LETTERS}*{_SMALL_LETTERS}+"
_CASED_WORD_2 = rf"[^\r\n\p{{L}}\p{{N}}]?{_BIG_LETTERS}+{_SMALL_LETTERS}*"
_ANY_CASE_1 = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]*[\p{L}\p{M}]+"
_ANY_CASE_2 = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+[\p{L}\p{M}]*"
_DIGITS_FROM_THE_RIGHT = r"[^\p{N}]*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"  # unicode.cpp:948
# Ranges of scripts, by code point: the letters themselves would not survive an editor that normalises.
_CHINESE_JAPANESE = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"  # 324
_CHINESE_KOREAN = r"[[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]&&\S]+"  # 315
_NO_SIGNS = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+"  # 403
_DEEPSEEK_SIGNS = r"\s?[[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]&&\S]+"  # 313
_DEEPSEEK_LETTERS = (  # 312: every cased letter
    r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}"
    r"\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}"
    r"\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}"
    r"\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}"
    r"\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}"
    r"\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}"
    r"\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}"
    r"\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}"
    r"\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}"
    r"\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}"
    r"\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}"
    r"\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}"
    r"\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}"
    r"\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+"
)
_ASIAN = (  # 510
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}"
    r"\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}\x{E40}-\x{E7F}\x{E80}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}"
    r"\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+"
)
_YOUTU_ASIAN = (  # 339
    r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}"
    r"\x{FF1A}\x{FF1B}\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|[\x{4E00}-\x{9FA5}"
    r"\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
)

_GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",)  # 372
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", *_GPT2, r"\p{N}+", "[0-9][0-9][0-9]")  # 561
_LLAMA3 = (rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACE}",)  # 284, 302, 406
_JAIS2 = (  # 293
    rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+|\s{{512}}(?!\S)|\s{{256}}(?!\S)|\s{{128}}(?!\S)|"
    r"\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
)
_DEEPSEEK_LLM = ("[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_SIGNS, r"\s+$", _CHINESE_KOREAN, r"\p{N}+")  # 309
_DEEPSEEK_V3 = (  # 319
    r"\p{N}{1,3}",
    _CHINESE_JAPANESE,
    rf"{_ASCII_WORD}|{_MARKED_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACE}",
)
_SPARK = (  # 329
    r"\p{N}{1,3}",
    _CHINESE_JAPANESE,
    rf"{_ASCII_WORD}|{_MARKED_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+",
    r"\p{N}",
)
_YOUTU = (  # 337
    _YOUTU_ASIAN,
    rf"{_ANY_CASE_1}{_CONTRACTION}?|{_ANY_CASE_2}{_CONTRACTION}?|\p{{N}}|{_SIGNS_OR_SLASH}|{_SPACE}",
)
_DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE_KOREAN, r"\p{N}")  # 343
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", *_GPT2, "[0-9][0-9][0-9]")  # 352
_DIGITS_THEN_GPT2 = (r"\p{N}", *_GPT2)  # 359
_QWEN2 = (rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACE}",)  # 382, 497
_QWEN35 = (  # 392
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACE}",
)
_PORO = (_NO_SIGNS,)  # 399
_VIKING = (_NO_SIGNS, r"\p{N}")  # 411
_TEKKEN = (rf"{_CASED_WORD_1}|{_CASED_WORD_2}|\p{{N}}|{_SIGNS_OR_SLASH}|{_SPACE}",)  # 417
_CHAMELEON = (  # 424
    "<sentinel:[0-9]+>",
    "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"([\t\n]|    |  )",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    *_GPT2,
)
_GPT4O = (  # 438
    rf"{_CASED_WORD_1}{_CONTRACTION}?|{_CASED_WORD_2}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_SIGNS_OR_SLASH}|{_SPACE}",
)
_GRANITE_EMBEDDING = (_GPT4O[0].replace(r"(?=[\p{L}])", r"(?=[\p{L}\p{M}])"),)  # 446
_TINY_AYA = (  # 455
    _DIGITS_FROM_THE_RIGHT,
    rf"{_ANY_CASE_1}{_CONTRACTION}?|{_ANY_CASE_2}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_SIGNS_OR_SLASH}|{_SPACE}",
)
_SUPERBPE = (r"\p{N}+", "(?=([0-9]{3})+(?![0-9]))")  # 470
_BAILING = (  # 476
    rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|\p{{N}}|{_SIGNS}|\s*[\r\n]|\s+(?!\S)|\s+",
)
_SEED_CODER = (rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACE}",)  # 484
_UFAKZEKA = (rf"{_WORD}|\p{{N}}|{_SIGNS}|{_SPACE}",)  # 491
_AFMOE = (  # 504
    _DIGITS_FROM_THE_RIGHT,
    _ASIAN,
    rf"{_ASCII_WORD}|{_MARKED_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACE}",
)
_LAGUNA = (r"[^\n]+|[\n]+", *_QWEN2)  # 515
_EXAONE_MOE = (  # 521
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
)
_HAN = (  # unicode_cpt_is_han in src/unicode.cpp
    r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{2F800}-\x{2FA1F}"
)
_KIMI = (  # 463: unicode_regex_split_custom_kimi_k2
    rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+{_CONTRACTION}?|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACE}",
)
_MINICPM5 = (r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_SIGNS}|{_SPACE}")  # 546

_LLAMA3_GROUP = PreTokenizer(_LLAMA3, ignore_merges=True, add_bos=True)

PRETOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer(_DEFAULT),  # 2168
    "minicpm5": PreTokenizer(_MINICPM5, ignore_merges=True),  # 2170
    "llama3": _LLAMA3_GROUP,  # 2174
    "llama-v3": _LLAMA3_GROUP,  # 2175
    "llama-bpe": _LLAMA3_GROUP,  # 2176
    "falcon3": _LLAMA3_GROUP,  # 2177
    "falcon-h1": _LLAMA3_GROUP,  # 2178
    "pixtral": _LLAMA3_GROUP,  # 2179
    "midm-2.0": _LLAMA3_GROUP,  # 2180
    "lfm2": _LLAMA3_GROUP,  # 2181
    "jina-v5-nano": _LLAMA3_GROUP,  # 2182
    "deepseek-llm": PreTokenizer(_DEEPSEEK_LLM),  # 2187
    "deepseek-coder": PreTokenizer(_DEEPSEEK_CODER),  # 2191
    "deepseek-v3": PreTokenizer(_DEEPSEEK_V3),  # 2195
    "spark2_5": PreTokenizer(_SPARK),  # 2199
    "youtu": PreTokenizer(_YOUTU, ignore_merges=True),  # 2203
    "falcon": PreTokenizer(_FALCON),  # 2208
    "mpt": PreTokenizer(_GPT2),  # 2211
    "starcoder": PreTokenizer(_DIGITS_THEN_GPT2),  # 2214
    "gpt-2": PreTokenizer(_GPT2),  # 2217
    "phi-2": PreTokenizer(_GPT2),  # 2218
    "jina-es": PreTokenizer(_GPT2),  # 2219
    "jina-de": PreTokenizer(_GPT2),  # 2220
    "gigachat": PreTokenizer(_GPT2),  # 2221
    "jina-v2-es": PreTokenizer(_GPT2),  # 2222
    "jina-v2-de": PreTokenizer(_GPT2),  # 2223
    "a.x-4.0": PreTokenizer(_GPT2),  # 2224
    "mellum": PreTokenizer(_GPT2),  # 2225
    "modern-bert": PreTokenizer(_GPT2),  # 2226
    "jais-2": PreTokenizer(_JAIS2),  # 2229
    "jina-v1-en": PreTokenizer(_GPT2),  # 2242
    "jina-v2-code": PreTokenizer(_GPT2),  # 2243
    "roberta-bpe": PreTokenizer(_GPT2),  # 2244
    "refact": PreTokenizer(_DIGITS_THEN_GPT2),  # 2252
    "command-r": PreTokenizer(_DIGITS_THEN_GPT2),  # 2255
    "qwen2": PreTokenizer(_QWEN2),  # 2259
    "deepseek-r1-qwen": PreTokenizer(_QWEN2),  # 2260
    "kormo": PreTokenizer(_QWEN2),  # 2261
    "f2llmv2": PreTokenizer(_QWEN2),  # 2262
    "qwen35": PreTokenizer(_QWEN35),  # 2266
    "stablelm2": PreTokenizer(_QWEN2),  # 2270
    "olmo": PreTokenizer(_GPT2),  # 2273
    "dbrx": PreTokenizer(_LLAMA3),  # 2276
    "smaug-bpe": PreTokenizer(_LLAMA3),  # 2279
    "poro-chat": PreTokenizer(_PORO),  # 2282
    "chatglm-bpe": PreTokenizer(_LLAMA3, has_default_bos=False),  # 2286
    "glm4": PreTokenizer(_LLAMA3, ignore_merges=True, has_default_bos=False),  # 2290
    "glm5": PreTokenizer(_LLAMA3, ignore_merges=True, has_default_bos=False),  # 2291
    "viking": PreTokenizer(_VIKING),  # 2296
    "jais": PreTokenizer(_GPT2),  # 2300
    "tekken": PreTokenizer(_TEKKEN, ignore_merges=True, add_bos=True),  # 2303
    "smollm": PreTokenizer(_DIGITS_THEN_GPT2),  # 2309
    "codeshell": PreTokenizer(_DIGITS_THEN_GPT2),  # 2313
    "bloom": PreTokenizer(_PORO),  # 2316
    "gpt3-finnish": PreTokenizer(_PORO),  # 2319
    "exaone": PreTokenizer(_DIGITS_THEN_GPT2),  # 2322
    "exaone4": PreTokenizer(_GPT2),  # 2325
    "exaone-moe": PreTokenizer(_EXAONE_MOE),  # 2328
    "chameleon": PreTokenizer(_CHAMELEON, add_bos=True),  # 2331
    "minerva-7b": PreTokenizer(_DIGITS_THEN_GPT2),  # 2336
    "megrez": PreTokenizer(_QWEN2),  # 2339
    "gpt-4o": PreTokenizer(_GPT4O),  # 2342
    "llama4": PreTokenizer(_GPT4O),  # 2343
    "kanana2": PreTokenizer(_GPT4O),  # 2344
    "talkie": PreTokenizer(_GPT4O),  # 2345
    "granite-embed-multi-97m": PreTokenizer(_GRANITE_EMBEDDING, ignore_merges=True),  # 2349
    "tiny_aya": PreTokenizer(_TINY_AYA),  # 2354
    "cohere2moe": PreTokenizer(_TINY_AYA),  # 2355
    "superbpe": PreTokenizer(_SUPERBPE),  # 2359
    "trillion": PreTokenizer(_GPT2),  # 2363
    "granite-docling": PreTokenizer(_GPT2),  # 2367
    "bailingmoe": PreTokenizer(_BAILING),  # 2371
    "bailingmoe2": PreTokenizer(_BAILING),  # 2372
    "llada-moe": PreTokenizer(_BAILING),  # 2373
    "seed-coder": PreTokenizer(_SEED_CODER),  # 2377
    "hunyuan": PreTokenizer(_QWEN2),  # 2381
    "hunyuan-dense": PreTokenizer(_DEEPSEEK_V3),  # 2385
    "hy_v4": PreTokenizer(_DEEPSEEK_V3),  # 2389
    "joyai-llm": PreTokenizer(_DEEPSEEK_V3),  # 2393
    "kimi-k2": PreTokenizer(_KIMI, needs_merges=False),  # 2397, 1999
    "ufakzeka": PreTokenizer(_UFAKZEKA),  # 2401
    "grok-2": PreTokenizer(_QWEN2),  # 2405
    "afmoe": PreTokenizer(_AFMOE),  # 2409
    "laguna": PreTokenizer(_LAGUNA),  # 2413
    "minimax-m2": PreTokenizer(_GPT4O),  # 2417
    "solar-open": PreTokenizer(_QWEN2),  # 2421
    "mellum2": PreTokenizer(_DIGITS_THEN_GPT2),  # 2425
}

_LINES = re.compile(r"[^\n]+|\n+")  # 533, 541
_NO_WHITE_SPACE = re.compile(  # 1730; Python's own \s has U+001C to U+001F besides
    r"[^\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
)
SPACE = "\u2581"
_GEMMA4 = CharacterPreTokenizer(_LINES, SPACE, whole_line_ends=True, always_bos=True)  # 637, 2653

OF_CHARACTERS: dict[str, CharacterPreTokenizer] = {
    "gemma4": _GEMMA4,  # 2232
    "granite-embed-multi-311m": _GEMMA4,  # 2233
    "sarvam-moe": CharacterPreTokenizer(_LINES, SPACE),  # 2237
    "whitespace": CharacterPreTokenizer(_NO_WHITE_SPACE, " "),  # 2248; the model of this name alone leaves out spaces
}

# Code points that Oniguruma (Unicode 16) gives a class and llama.cpp's table (src/unicode-data.cpp, Unicode 15.0)
# does not; a range may run over code points that neither knows.
_NEWER_THAN_15 = (
    "897 1B4E-1B4F 1B7F 1C89-1C8A 2427-2429 31E4-31E5 A7CB-A7CD A7DA-A7DC 105C0-105F3 10D40-10D8F 10EC2-10EFC "
    "11380-113E2 116D0-116E3 11BC0-11BF9 11F5A 13460-143FA 16100-16139 16D40-16D79 18CFF 1CC00-1CEB3 1E5D0-1E5FF "
    "1F8B2-1F8C1 1FA89-1FA8F 1FABE 1FAC6 1FADC-1FADF 1FAE9 1FBCB-1FBEF"
)


def as_of_unicode_15(pattern: str) -> str:
    r"""Rewrite a pattern so that `\p{L}` and its like mean what they meant in Unicode 15.0, as in llama.cpp."""
    known = "[^" + re.sub(r"[0-9A-F]+", r"\\x{\g<0>}", _NEWER_THAN_15).replace(" ", "") + "]"
    return re.sub(r"\\p\{[LMNPS]\}", lambda match: f"[{match[0]}&&{known}]", pattern)
