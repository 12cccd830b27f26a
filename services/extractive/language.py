"""Which language a question is in, as far as a plain sentence of ours needs it."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_SCRIPTS: Final = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("zh", re.compile("[\u3400-\u9fff]")),
    ("ru", re.compile("[\u0400-\u04ff]")),
)
_COMMON: Final = {
    "de": "der die das ist und wie was wer wo wann warum welche nicht ein eine kann ich",
    "fr": "le la les est et comment quoi qui où quand pourquoi quelle quel une des puis je",
    "es": "el la los las es está y cómo qué quién dónde cuándo por cuál una puedo como que del",
    "en": "the is are and how what who where when why which a an can does do of to in",
}
_WORDS: Final = {code: frozenset(words.split()) for code, words in _COMMON.items()}

NOTHING_FOUND: Final[Mapping[str, str]] = MappingProxyType(
    {
        "en": "I found no passage that answers this. I am local-extractive, an offline program that only quotes "
        "passages from your documents; I write nothing of my own.",
        "zh": "没有找到能回答这个问题的段落。我是 local-extractive，一个只引用您文档原文的离线程序，不会自行撰写内容。",
        "ja": "この質問に答える箇所は見つかりませんでした。私は local-extractive、文書の引用だけを行うオフラインのプログラムで、自分では文章を書きません。",
        "ko": "이 질문에 답하는 구절을 찾지 못했습니다. 저는 local-extractive이며, 문서의 구절만 인용하는 오프라인 프로그램입니다.",
        "ru": "Я не нашёл отрывка, который отвечает на этот вопрос. Я local-extractive, программа без сети, которая "
        "только цитирует ваши документы.",
        "de": "Ich habe keine Stelle gefunden, die das beantwortet. Ich bin local-extractive, ein Programm ohne Netz, "
        "das nur aus Ihren Dokumenten zitiert.",
        "fr": "Je n'ai trouvé aucun passage qui réponde à cela. Je suis local-extractive, un programme hors ligne qui "
        "ne fait que citer vos documents.",
        "es": "No encontré ningún pasaje que responda a esto. Soy local-extractive, un programa sin conexión que solo "
        "cita sus documentos.",
    }
)
"""What the server says where it has nothing to quote, by language."""


def language_of(text: str) -> str:
    """A key of `NOTHING_FOUND`; English where nothing says otherwise."""
    for code, script in _SCRIPTS:
        if script.search(text):
            return code
    words = re.findall(r"[^\W\d_]+", text.lower())
    counts = {code: sum(word in known for word in words) for code, known in _WORDS.items()}
    best = max(counts, key=lambda code: counts[code])
    return best if counts[best] > counts["en"] else "en"
