"""Prompts that people may write for a picture: synonyms, orders of words, phrases around them, and one plain caption.

Every word that names something belongs to one subject, colour or scene only. Openings, qualities, endings and function
words name nothing.
"""

from __future__ import annotations

import numpy as np

from training.tiny.scenes import Combination

SUBJECT_WORDS = {
    "cat": ("cat", "kitten", "kitty"),
    "boat": ("boat", "sailing boat", "sailboat", "yacht"),
    "house": ("house", "cottage", "home", "cabin"),
    "car": ("car", "automobile"),
    "rocket": ("rocket", "spaceship", "spacecraft"),
    "balloon": ("balloon", "hot air balloon", "hot-air balloon"),
    "mushroom": ("mushroom", "toadstool"),
    "robot": ("robot", "android", "droid"),
}

COLOUR_WORDS = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "lemon yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "white": ("white", "ivory"),
}

# phrases of place, nouns of place, single words
PLACE_PHRASES = {
    "meadow": ("in a meadow", "on the grass", "in a field", "among flowers", "in the countryside"),
    "snow": ("in the snow", "in front of snowy mountains", "in winter", "on a snowy day"),
    "desert": ("in the desert", "in the desert at sunset", "among the dunes", "at sunset"),
    "night": ("at night", "under the stars", "under a starry sky", "in the moonlight"),
    "beach": ("on the beach", "at the beach", "by the sea", "at the seaside", "by the ocean"),
    "city": ("in the city", "in town", "in front of a skyline", "downtown", "on a city street"),
}
PLACE_NOUNS = {
    "meadow": ("a meadow", "a flowery meadow", "a field of flowers"),
    "snow": ("snowy mountains", "a winter landscape", "snow"),
    "desert": ("a desert", "desert dunes", "a desert at sunset"),
    "night": ("a starry night", "a night sky", "a moonlit night"),
    "beach": ("a beach", "the sea", "the seaside", "a tropical beach"),
    "city": ("a city", "a city skyline", "a town", "a city street"),
}
PLACE_WORDS = {
    "meadow": ("meadow", "field", "flowers", "countryside"),
    "snow": ("snow", "winter", "snowy mountains", "mountains"),
    "desert": ("desert", "dunes", "desert sunset"),
    "night": ("night", "starry night", "stars", "moonlight"),
    "beach": ("beach", "sea", "seaside", "ocean"),
    "city": ("city", "town", "downtown", "skyline"),
}

OPENINGS = ("an illustration of", "a picture of", "a drawing of", "a flat illustration of", "an image of", "draw")
QUALITIES = ("cute", "small", "big", "little", "nice", "beautiful", "simple", "shiny", "old")
ENDINGS = ("flat illustration", "vector art", "clip art", "highly detailed", "crisp", "minimal style")
SHADES = ("dark", "light", "bright", "pale", "deep")  # before a colour. They change nothing.
NUMBERS = ("two", "three", "some", "many", "")  # before a plural, of which one is drawn
FUNCTION_WORDS = (
    "a",
    "an",
    "the",
    "in",
    "on",
    "at",
    "by",
    "of",
    "with",
    "among",
    "under",
    "front",
    "is",
    "day",
    "sky",
    "and",
)

# drawn for a caption that names no colour or no scene
USUAL_COLOUR = {
    "cat": "orange",
    "boat": "blue",
    "house": "yellow",
    "car": "red",
    "rocket": "white",
    "balloon": "purple",
    "mushroom": "red",
    "robot": "green",
}
USUAL_SCENE = {
    "cat": "meadow",
    "boat": "beach",
    "house": "meadow",
    "car": "city",
    "rocket": "night",
    "balloon": "meadow",
    "mushroom": "meadow",
    "robot": "city",
}


def plain_caption(what: Combination) -> str:
    """`a red cat in the snow`: the first word of everything."""
    return f"{_with_article(f'{what.colour} {what.subject}')} {PLACE_PHRASES[what.scene][0]}"


def caption(what: Combination, rng: np.random.Generator) -> str:
    """One of the many ways to say it, drawn from `rng`.

    Three in ten captions of a thing in its usual colour do not name the colour. The same holds for its usual scene.
    """
    subject = _pick(rng, SUBJECT_WORDS[what.subject])
    colour = _pick(rng, COLOUR_WORDS[what.colour])
    if what.colour == USUAL_COLOUR[what.subject] and rng.random() < 0.3:
        colour = ""
    if what.scene == USUAL_SCENE[what.subject] and rng.random() < 0.3:
        return _dressed(_thing(subject, colour, rng), rng)
    if rng.random() < 0.7:
        return _sentence(subject, colour, what.scene, rng)
    return _keywords(subject, colour, what.scene, rng)


def vocabulary() -> frozenset[str]:
    """Every word that a caption may hold, in lower case. Hyphens divide words."""
    tables = (SUBJECT_WORDS, COLOUR_WORDS, PLACE_PHRASES, PLACE_NOUNS, PLACE_WORDS)
    named = [phrase for table in tables for phrases in table.values() for phrase in phrases]
    plurals = [plural(word) for words in SUBJECT_WORDS.values() for word in words]
    phrases = (*named, *plurals, *OPENINGS, *QUALITIES, *ENDINGS, *FUNCTION_WORDS, *SHADES, *NUMBERS)
    return frozenset(word for phrase in phrases for word in phrase.replace("-", " ").split())


def _sentence(subject: str, colour: str, scene: str, rng: np.random.Generator) -> str:
    thing, place = _thing(subject, colour, rng), _pick(rng, PLACE_PHRASES[scene])
    order = rng.random()
    if order < 0.55:
        return _dressed(f"{thing} {place}", rng)
    if order < 0.85:
        return _dressed(f"{_pick(rng, PLACE_NOUNS[scene])} with {thing}", rng)
    if order < 0.95 or not colour:
        return f"{place}, {thing}"
    return f"the {subject} is {colour}, {place}"


def _keywords(subject: str, colour: str, scene: str, rng: np.random.Generator) -> str:
    words = [word for word in (colour, subject, _pick(rng, PLACE_WORDS[scene])) if word]
    if rng.random() < 0.5:
        words = rng.permutation(words).tolist()
    return _pick(rng, (", ", " ")).join(words)


def _thing(subject: str, colour: str, rng: np.random.Generator) -> str:
    """Of two colours or two things the first is drawn, and one of many."""
    quality = _pick(rng, QUALITIES) if rng.random() < 0.2 else ""
    if colour and rng.random() < 0.15:
        colour = f"{_pick(rng, SHADES)} {colour}"
    elif colour and rng.random() < 0.05:
        colour = f"{colour} and {_pick(rng, COLOUR_WORDS[_pick(rng, tuple(COLOUR_WORDS))])}"
    kind = rng.random()
    words = " ".join(word for word in (quality, colour, plural(subject) if kind < 0.08 else subject) if word)
    if kind < 0.08:
        words = f"{_pick(rng, NUMBERS)} {words}".strip()
    elif kind > 0.16:
        words = _with_article(words)
    if rng.random() < 0.04:
        words += f" and {_with_article(_pick(rng, SUBJECT_WORDS[_pick(rng, tuple(SUBJECT_WORDS))]))}"
    return words


def plural(subject: str) -> str:
    if subject.endswith("craft"):
        return subject
    return f"{subject[:-1]}ies" if subject.endswith("y") else f"{subject}s"


def _dressed(words: str, rng: np.random.Generator) -> str:
    opened = f"{_pick(rng, OPENINGS)} {words}" if rng.random() < 0.25 else words
    return f"{opened}, {_pick(rng, ENDINGS)}" if rng.random() < 0.15 else opened


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[rng.integers(len(choices))]
