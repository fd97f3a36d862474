"""The emoji that the family knows: code point, Fluent file name, noun, synonyms."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Emoji:
    """One emoji in all styles."""

    code: str
    slug: str
    noun: str
    synonyms: tuple[str, ...]


_TABLE = """
1f600 grinning-face|grinning face|happy face,smiling face
1f602 face-with-tears-of-joy|laughing face|tears of joy
1f60d smiling-face-with-heart-eyes|face with heart eyes|lovestruck face
1f60e smiling-face-with-sunglasses|face with sunglasses|cool face
1f621 pouting-face|angry face|furious face,red face
1f622 crying-face|crying face|sad face
1f634 sleeping-face|sleeping face|tired face
1f631 face-screaming-in-fear|screaming face|scared face
1f47b ghost|ghost|spook
1f47d alien|alien|extraterrestrial
1f916 robot|robot|android
1f480 skull|skull|death head
1f383 jack-o-lantern|pumpkin|jack-o-lantern
1f431 cat-face|cat|kitty,kitten
1f436 dog-face|dog|puppy
1f98a fox|fox|vixen
1f43b bear|bear|grizzly
1f43c panda|panda|panda bear
1f42f tiger-face|tiger|big striped cat
1f981 lion|lion|lion king
1f42e cow-face|cow|cattle
1f437 pig-face|pig|piglet
1f438 frog|frog|toad
1f435 monkey-face|monkey|ape
1f430 rabbit-face|rabbit|bunny
1f427 penguin|penguin|antarctic bird
1f419 octopus|octopus|kraken
1f420 tropical-fish|fish|tropical fish
1f98b butterfly|butterfly|moth
1f422 turtle|turtle|tortoise
1f41d honeybee|bee|honeybee
1f989 owl|owl|night bird
1f414 chicken|chicken|hen
1f34e red-apple|apple|red apple
1f34c banana|banana|ripe banana
1f353 strawberry|strawberry|berry
1f349 watermelon|watermelon|melon slice
1f34a tangerine|orange|tangerine,mandarin
1f352 cherries|cherries|pair of cherries
1f355 pizza|pizza|slice of pizza
1f354 hamburger|hamburger|burger
1f369 doughnut|donut|doughnut
1f36a cookie|cookie|biscuit
1f382 birthday-cake|cake|birthday cake
1f951 avocado|avocado|guacamole fruit
1f344 mushroom|mushroom|toadstool
1f697 automobile|car|automobile
1f68c bus|bus|coach
1f680 rocket|rocket|spaceship
26f5 sailboat|sailboat|boat,ship
2b50 star|star|gold star
2764-fe0f red-heart|heart|red heart
2600-fe0f sun|sun|sunshine
1f319 crescent-moon|moon|crescent
1f308 rainbow|rainbow|coloured arc
1f333 deciduous-tree|tree|oak
1f33b sunflower|sunflower|yellow flower
1f339 rose|rose|red flower
26bd soccer-ball|soccer ball|football
1f381 wrapped-gift|gift|present
1f48e gem-stone|gem|diamond,jewel
1f525 fire|fire|flame
1f4a7 droplet|droplet|drop of water
1f511 key|key|golden key
"""


def _parse(line: str) -> Emoji:
    head, noun, synonyms = line.split("|")
    code, slug = head.split(" ")
    return Emoji(code, slug, noun, tuple(synonyms.split(",")))


EMOJI: tuple[Emoji, ...] = tuple(_parse(line) for line in _TABLE.strip().splitlines())

STYLES: dict[str, str] = {"noto": "noto", "twemoji": "twemoji", "fluent": "fluent"}

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (25, 25, 28),
    "grey": (140, 140, 145),
    "red": (205, 50, 45),
    "orange": (245, 140, 35),
    "yellow": (250, 220, 80),
    "green": (65, 155, 75),
    "blue": (50, 100, 200),
    "purple": (130, 70, 165),
    "pink": (245, 160, 190),
}
