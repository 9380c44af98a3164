"""Texts for a made world: no two are the same, and nobody can doubt their language."""

from random import Random

WHO = [
    "The city council", "My neighbour across the street", "A group of local teachers", "The governor's office",
    "Our old football coach", "The library on Main Street", "A reporter from the evening news", "The school board",
    "My grandmother", "The owner of the bakery", "Every nurse at the hospital", "The mayor of our little town",
]  # fmt: skip
DID_WHAT = [
    "finally talked about", "voted against", "spent the whole morning reading about", "asked everyone to support",
    "wrote a long letter about", "could not stop laughing about", "promised to look into", "was very happy with",
]  # fmt: skip
WHAT = [
    "the new budget for public schools", "the broken bridge over the river", "the price of eggs and milk",
    "the bus that never comes on time", "a plan to plant more trees in the park", "the results of the election",
    "the weather that we had last weekend", "that funny movie about a dog and a lawyer",
    "the new rules for parking downtown", "the concert at the old theatre",
]  # fmt: skip
AND_THEN = [
    "and I think that they were right", "which is what people here have been saying for years",
    "but nobody wanted to hear the truth", "so we all went home and made some tea",
    "and now everyone wonders what will happen next", "because there was nothing else that we could do",
]  # fmt: skip
FOREIGN = [
    ("de", "Der Stadtrat stimmt morgen Abend über den neuen Haushalt ab, und viele Menschen warten schon draußen."),
    ("de", "Heute habe ich mit meiner Nachbarin lange über das schlechte Wetter und die teuren Eier gesprochen."),
    ("ja", "市議会は明日の夜、新しい予算について投票します。多くの人が外で待っています。"),
    ("ja", "今日は友達と一緒に公園へ行って、おいしいお弁当を食べました。とても楽しかったです。"),
    ("pt", "A câmara municipal vota amanhã à noite o novo orçamento, e muitas pessoas já estão à espera lá fora."),
    ("pt", "Hoje eu conversei com a minha vizinha sobre o tempo ruim e sobre o preço dos ovos no mercado."),
]
DIGITS = {
    "de": ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"],
    "ja": ["零", "一", "二", "三", "四", "五", "六", "七", "八", "九"],
    "pt": ["zero", "um", "dois", "três", "quatro", "cinco", "seis", "sete", "oito", "nove"],
}


def english(randomness: Random, number: int) -> str:
    """A plain sentence; `number` makes it unique."""
    who, did_what, what, then = (randomness.choice(words) for words in (WHO, DID_WHAT, WHAT, AND_THEN))
    return f"{who} {did_what} {what}, {then}. That was story number {number} of this week."


def foreign(randomness: Random, number: int) -> tuple[str, str]:
    """(language tag, text); `number` makes the text unique."""
    tag, sentence = randomness.choice(FOREIGN)
    return tag, sentence + " " + " ".join(DIGITS[tag][int(digit)] for digit in str(number))
