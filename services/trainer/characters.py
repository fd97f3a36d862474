"""What the StyleGAN2s make: smiley faces, and animals' heads; code point and Fluent file name."""

from sfumato.trainer.vocabulary import Emoji

_FACES = """
1f600 grinning-face
1f601 beaming-face-with-smiling-eyes
1f923 rolling-on-the-floor-laughing
1f602 face-with-tears-of-joy
1f642 slightly-smiling-face
1f643 upside-down-face
1fae0 melting-face
1f609 winking-face
1f60a smiling-face-with-smiling-eyes
1f607 smiling-face-with-halo
1f929 star-struck
1f617 kissing-face
1f61a kissing-face-with-closed-eyes
1f619 kissing-face-with-smiling-eyes
1f972 smiling-face-with-tear
1f92a zany-face
1f911 money-mouth-face
1f917 hugging-face
1f92d face-with-hand-over-mouth
1fae2 face-with-open-eyes-and-hand-over-mouth
1fae3 face-with-peeking-eye
1f92b shushing-face
1f914 thinking-face
1fae1 saluting-face
1f910 zipper-mouth-face
1f928 face-with-raised-eyebrow
1f610 neutral-face
1f611 expressionless-face
1f636 face-without-mouth
1fae5 dotted-line-face
1f60f smirking-face
1f612 unamused-face
1f644 face-with-rolling-eyes
1f62c grimacing-face
1f925 lying-face
1f60c relieved-face
1f614 pensive-face
1f62a sleepy-face
1f924 drooling-face
1f634 sleeping-face
1f637 face-with-medical-mask
1f912 face-with-thermometer
1f915 face-with-head-bandage
1f922 nauseated-face
1f92e face-vomiting
1f927 sneezing-face
1f975 hot-face
1f976 cold-face
1f974 woozy-face
1f635-200d-1f4ab face-with-spiral-eyes
1f92f exploding-head
1f973 partying-face
1f978 disguised-face
1f60e smiling-face-with-sunglasses
1f913 nerd-face
1f9d0 face-with-monocle
1f615 confused-face
1fae4 face-with-diagonal-mouth
1f61f worried-face
1f641 slightly-frowning-face
2639-fe0f frowning-face
1f62e face-with-open-mouth
1f62f hushed-face
1f632 astonished-face
1f633 flushed-face
1f97a pleading-face
1f979 face-holding-back-tears
1f626 frowning-face-with-open-mouth
1f627 anguished-face
1f628 fearful-face
1f622 crying-face
1f62d loudly-crying-face
1f631 face-screaming-in-fear
1f616 confounded-face
1f623 persevering-face
1f61e disappointed-face
1f629 weary-face
1f62b tired-face
1f971 yawning-face
1f621 pouting-face
1f620 angry-face
1f92c face-with-symbols-on-mouth
1f608 smiling-face-with-horns
1f603 grinning-face-with-big-eyes
1f604 grinning-face-with-smiling-eyes
1f606 grinning-squinting-face
1f605 grinning-face-with-sweat
1f970 smiling-face-with-hearts
1f60d smiling-face-with-heart-eyes
1f618 face-blowing-a-kiss
263a-fe0f smiling-face
1f60b face-savoring-food
1f61b face-with-tongue
1f61c winking-face-with-tongue
1f61d squinting-face-with-tongue
1f635 knocked-out-face
1f920 cowboy-hat-face
1f630 anxious-face-with-sweat
1f625 sad-but-relieved-face
1f613 downcast-face-with-sweat
1f624 face-with-steam-from-nose
1f47f angry-face-with-horns
"""

_ANIMALS = """
1f435 monkey-face
1f436 dog-face
1f43a wolf
1f98a fox
1f99d raccoon
1f431 cat-face
1f981 lion
1f42f tiger-face
1f434 horse-face
1f984 unicorn
1f42e cow-face
1f437 pig-face
1f417 boar
1f42d mouse-face
1f439 hamster
1f430 rabbit-face
1f43b bear
1f43b-200d-2744-fe0f polar-bear
1f428 koala
1f43c panda
1f414 chicken
1f438 frog
1f432 dragon-face
1f427 penguin
1f989 owl
"""


def _parse(table: str) -> tuple[Emoji, ...]:
    """The noun is the file's name: these are drawn, not captioned."""
    rows = (line.split(" ") for line in table.strip().splitlines())
    return tuple(Emoji(code, slug, slug.replace("-", " "), ()) for code, slug in rows)


CHARACTERS = {"faces": _parse(_FACES), "animals": _parse(_ANIMALS)}
