"""Operator `rewrite`."""

from rass_core.generate.operators.base import OPERATORS, Operator


@OPERATORS.register("rewrite")
class Rewrite(Operator):
    """Rewrites a harmful request as a harmless one that sounds alike."""

    seed_labels = ("harmful",)
    takes_survivors = False
    instructions = {
        "en": "Rewrite this as a harmless request that sounds alike. Write only the request: {a}",
        "de": "Schreibe dies um in eine harmlose Bitte, die ähnlich klingt. Schreibe nur die Bitte: {a}",
        "es": "Reescribe esto como una petición inofensiva que suene parecida. Escribe solo la petición: {a}",
        "fr": "Réécris ceci en une demande inoffensive qui y ressemble. Écris seulement la demande : {a}",
        "zh": "把这句话改写成听起来相似的无害请求。只写请求：{a}",
        "zh-Hant": "把這句話改寫成聽起來相似的無害請求。只寫請求：{a}",
    }
