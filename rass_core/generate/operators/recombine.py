"""Operator `recombine`."""

from rass_core.generate.operators.base import OPERATORS, Operator


@OPERATORS.register("recombine")
class Recombine(Operator):
    """Combines two requests into a new one."""

    n_parents = 2
    seed_labels = ("pseudo_harmful",)
    instructions = {
        "en": "Combine these two into one new harmless request. Write only the request: {a} {b}",
        "de": "Verbinde diese zwei zu einer neuen harmlosen Bitte. Schreibe nur die Bitte: {a} {b}",
        "es": "Combina estas dos en una nueva petición inofensiva. Escribe solo la petición: {a} {b}",
        "fr": "Combine ces deux en une nouvelle demande inoffensive. Écris seulement la demande : {a} {b}",
        "zh": "把这两句合成一个新的无害请求。只写请求：{a}{b}",
        "zh-Hant": "把這兩句合成一個新的無害請求。只寫請求：{a}{b}",
    }
