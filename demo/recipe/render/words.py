"""What pictures print: real words, split for good into training and held-out ones, and invented strings."""

from __future__ import annotations

import random
import string

from demo.recipe.render.charset import DIGITS, UPPER
from demo.recipe.render.fonts import Faces

_WORDS = """
    anchor apple arrow autumn badge bakery balcony bamboo basket beacon bench berry bicycle blanket blossom bottle
    branch bridge bronze bucket button cabin camera candle canyon carpet castle cellar chair cherry circus cliff
    clock cloud clover coast cobalt comet copper coral cotton cradle crystal curtain dagger daisy desert diamond
    dolphin dragon eagle earth echo ember emerald engine fabric falcon feather fiddle field flame forest fossil
    fountain fox garden garnet ginger glacier glove gravel guitar hammer harbor harvest hazel hedge helmet heron
    honey horizon hotel island ivory jacket jasmine jewel jungle kettle kitchen ladder lagoon lamp lantern laurel
    lemon library lily linen lobster lotus magnet mango maple marble market meadow melody mirror monkey moon moss
    mountain museum needle nickel night oasis ocean olive onyx opera orbit orchid otter owl oyster paddle palace
    panda paper parrot pearl pebble pencil pepper piano pigeon pillow pine pirate planet plaza plum pocket pony
    poplar prairie puzzle quartz quiver rabbit radar raven ribbon river robin rocket rope saddle saffron sail
    salmon sand satin school shadow shell silver sketch sparrow spice spider spiral spring spruce stable station
    stone storm studio summit sunset swan temple thistle thunder tiger timber tower tulip tunnel turtle valley
    velvet violet violin volcano wagon walnut willow window winter wizard wolf wood yarrow zebra zenith zipper
"""
_GOODS = """
    coffee tea milk bread butter cheese eggs rice pasta sugar salt flour honey jam juice water soda beer wine soup
    salad pizza burger fries bagel muffin donut cookie cake pie candy banana grapes melon peach pear tomato potato
    carrot onion garlic beans corn chicken turkey bacon ham sausage tuna shrimp yogurt cream cereal oats nuts
    soap shampoo towel sponge candle pen notebook stamp ticket map battery cable lamp socks scarf gloves
"""
WORDS, GOODS = tuple(_WORDS.split()), tuple(_GOODS.split())
SHOPS = ("Market", "Cafe", "Store", "Bistro", "Deli", "Bakery", "Kiosk", "Shop")
_ONSETS = """
    b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl gr kn pl pr qu sh sk sl sp st str th tr wh
"""
_NUCLEI = "a e i o u a e i o u ai ea ee ie oa oo ou"
_CODAS = "b d g k l m n p r s t x ck ff ft ld ll mp nd ng nk nt pp rd rn rr rt sk sp ss st tch th tt tt"
ONSETS, NUCLEI, CODAS = tuple(_ONSETS.split()), tuple(_NUCLEI.split()), ("", "", *_CODAS.split())
LONGEST = 9
# Every fifth word is for evaluation only.
HELD_OUT_EVERY = 5


def words(which: Faces) -> tuple[str, ...]:
    return part(WORDS, which)


def goods(which: Faces) -> tuple[str, ...]:
    return part(GOODS, which)


def part(whole: tuple[str, ...], which: Faces) -> tuple[str, ...]:
    held_out = whole[::HELD_OUT_EVERY]
    return held_out if which == "held_out" else tuple(each for each in whole if each not in held_out)


def word(rng: random.Random, which: Faces) -> str:
    """In lower case, capitals, or capitalized. For training mostly invented; for evaluation from the held-out list."""
    chosen = rng.choice(words(which)) if which == "held_out" or rng.random() < 0.25 else invented(rng)
    return rng.choice((str.lower, str.upper, str.capitalize))(chosen)


def invented(rng: random.Random) -> str:
    """For training: letters at random, syllables, or a known word changed, which is wrong when said by heart."""
    kind = rng.random()
    if kind < 0.25:
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 8)))
    if kind < 0.65:
        return changed(rng, rng.choice(words("train")))
    syllables = ("".join(map(rng.choice, (ONSETS, NUCLEI, CODAS))) for _ in range(rng.randint(1, 3)))
    return "".join(syllables)[:LONGEST]


def changed(rng: random.Random, name: str) -> str:
    """One or two letters doubled, left out, exchanged for another or for the next; never a held-out word."""
    letters = list(name)
    for _ in range(rng.randint(1, 2)):
        at, change = rng.randrange(len(letters)), rng.randrange(4)
        if change == 0 and len(letters) < LONGEST:
            letters.insert(at, letters[at])
        elif change == 1 and len(letters) > 2:
            del letters[at]
        elif change == 2:
            letters[at : at + 2] = letters[at : at + 2][::-1]
        else:
            letters[at] = rng.choice(string.ascii_lowercase)
    made = "".join(letters)
    return name if made in WORDS else made


def number(rng: random.Random) -> str:
    """1 to 6 digits, sometimes a price."""
    if rng.random() < 0.25:
        return rng.choice(("", "", "$")) + price(rng)
    length = rng.randint(1, 6)
    return rng.choice("123456789") + "".join(rng.choices(DIGITS, k=length - 1))


def price(rng: random.Random, most: int = 99) -> str:
    return f"{rng.randint(0, most)}.{rng.randint(0, 99):02d}"


def code(rng: random.Random) -> str:
    """Mixed letters and digits, such as K7-204 or QX38."""
    pattern = rng.choice(("AA-999", "A99", "A9-999", "AA999", "AAA-99", "999-A", "A9A9", "99-AA-9"))
    return "".join(
        rng.choice(UPPER) if each == "A" else rng.choice(DIGITS) if each == "9" else each for each in pattern
    )
