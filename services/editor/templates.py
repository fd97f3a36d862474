"""Phrases around a text, over whose embeddings CLIP's text is averaged.

"photo" and "emoji": by the words that the family's CLIP was trained on.
"""

# Of an image (Text2LIVE's, and the seven that OpenAI chose from its ImageNet templates).
PHRASES = {
    "photo": (
        "photo of {}.", "high quality photo of {}.", "a photo of {}.", "the photo of {}.", "image of {}.",
        "an image of {}.", "high quality image of {}.", "the {}.", "{}.", "itap of a {}.",
        "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.",
        "art of the {}.", "a photo of the small {}.",
    ),
    "emoji": ("{}", "a picture of {}", "a noto emoji of {}", "a twemoji emoji of {}", "a fluent emoji of {}"),
}  # fmt: skip

# Of Text2LIVE's edit layer, composed over green.
SCREENS = {
    "photo": ("{} over a green screen.", "{} in front of a green screen."),
    "emoji": ("{} on a green background", "a picture of {} on a green background"),
}
