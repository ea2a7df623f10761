"""GPT-2's byte alphabet: every byte as one printable character, so that merges and tokens are text.

Source: bytes_to_unicode in OpenAI's GPT-2 (encoder.py); unicode_byte_to_utf8_map in llama.cpp's src/unicode.cpp.
"""

from __future__ import annotations


def _alphabet() -> str:
    """The character of each byte: itself where it is printable Latin-1, else the next free one from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    shifted = {byte: 0x100 + place for place, byte in enumerate(others)}
    return "".join(chr(shifted.get(byte, byte)) for byte in range(256))


BYTE_TO_CHARACTER = _alphabet()
CHARACTER_TO_BYTE = {character: byte for byte, character in enumerate(BYTE_TO_CHARACTER)}


def decoded(token: str) -> bytes:
    """The bytes that a token in the alphabet stands for; other characters are spelled out (llama_decode_text)."""
    return b"".join(_byte_of(character, token) for character in token)


def _byte_of(character: str, token: str) -> bytes:
    byte = CHARACTER_TO_BYTE.get(character)
    if byte is not None:
        return bytes([byte])
    return f"[UNK_BYTE_0x{character.encode().hex()}{token}]".encode()
