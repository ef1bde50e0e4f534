"""Texts that are cut, without words, of unknown characters, wrongly decoded or full of markup."""

import re
from collections.abc import Sequence

from sft_jax.data.texts.reading import Text, TextReading
from sft_jax.inspect.finding import Finding
from sft_jax.inspect.quality import of_the_set

# A share of unknown tokens above which a text is not one of the tokenizer's language.
UNKNOWN = 0.2
# Tags of HTML and character references.
MARKUP = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(?:\s[^<>]*)?/?>|&(?:[a-zA-Z]{2,8}|#\d{2,6}|#x[0-9a-fA-F]{2,6});")
REPLACED = "\N{REPLACEMENT CHARACTER}"


def poor_texts(texts: Sequence[Text], reading: TextReading, notices: list[str]) -> list[Finding]:
    """Finds texts of poor quality.

    Args:
      texts: all texts.
      reading: the tokenizer of the network, and how many tokens it reads.
      notices: receives a line about each fault that most texts have, which are then not listed for it.
    """
    read, unknown = reading.read(texts), -1 if reading.unknown is None else reading.unknown
    kinds = ("cut", "empty", "unknown", "garbled", "markup")
    # Of each kind: row -> score, and what to say of it.
    judged: dict[str, dict[int, tuple[float, str]]] = {kind: {} for kind in kinds}
    for row, text in enumerate(texts):
        tokens, whole = int(read.lengths[row]), " ".join(text)
        if read.longer[row]:
            words = len(whole.split())
            score = 1 - tokens / max(words, tokens + 1)
            judged["cut"][row] = score, f"{words:,} words, of which the network reads {tokens:,} tokens"
        if not re.search(r"\w", whole):
            judged["empty"][row] = 1.0, "no letter or digit"
        share = float((read.tokens[row, :tokens] == unknown).mean())
        if share > UNKNOWN:
            judged["unknown"][row] = share, f"{share:.0%} of its tokens are unknown to the tokenizer"
        if wrong := garbled(whole):
            judged["garbled"][row] = 1.0, f"{wrong!r}, of another encoding"
        if tags := MARKUP.findall(whole):
            judged["markup"][row] = sum(map(len, tags)) / len(whole), ", ".join(dict.fromkeys(tags[:3]))
    found = []
    for kind, rows in judged.items():
        if of_the_set(len(rows), len(texts), f"texts have the fault {kind!r}", notices):
            continue
        found += [Finding(row, "quality", score, f"{kind}: {words}") for row, (score, words) in rows.items()]
    return found


def garbled(text: str) -> str:
    """Returns the first part of a text that was decoded wrongly, e.g. "Ã©" for "é"; empty if there is none.

    Characters were decoded wrongly if their bytes in cp1252 are valid UTF-8, or if they replace invalid bytes.
    """
    for run in re.findall(r"[^\x00-\x7f]+", text):
        if REPLACED in run:
            return REPLACED
        try:
            # What cp1252 does not have, such as 0x81, is often kept as it is.
            content = b"".join(one.encode("cp1252", errors="ignore") or one.encode("latin-1") for one in run)
            content.decode()
        except UnicodeError:
            continue
        return str(run)
    return ""
