"""Your own filter: `Pipeline.load(filter=OwnFilter())`, or `sdturbo-serve --filter own_filter:OwnFilter`."""

import re

from PIL import Image, ImageStat


class OwnFilter:
    """Refuses prompts with a word of a list, and dark pictures. A refusal is its reason, and None lets pass."""

    def check_prompt(self, prompt: str) -> str | None:
        words = {"blood", "weapon"} & set(re.findall(r"\w+", prompt.casefold()))
        return f"this server draws no {' or '.join(sorted(words))}" if words else None

    def check_picture(self, picture: Image.Image) -> str | None:  # a classifier stands here
        return "the picture is too dark" if ImageStat.Stat(picture.convert("L")).mean[0] < 20 else None
