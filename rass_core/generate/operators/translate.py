"""Operator `translate`."""

from rass_core.generate.operators.base import OPERATORS, Operator


@OPERATORS.register("translate")
class Translate(Operator):
    """Translates a request from any other language."""

    seed_labels = ("pseudo_harmful",)
    crosses_languages = True
    instructions = {
        "en": "Translate into English. Write only the translation: {a}",
        "de": "Übersetze ins Deutsche. Schreibe nur die Übersetzung: {a}",
        "es": "Traduce al español. Escribe solo la traducción: {a}",
        "fr": "Traduis en français. Écris seulement la traduction : {a}",
        "zh": "翻译成中文。只写译文：{a}",
        "zh-Hant": "翻譯成繁體中文。只寫譯文：{a}",
    }
