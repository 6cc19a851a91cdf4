"""The mark that a model drew a picture, for programs that read files: IPTC's digital source type, in XMP.

Sources: IPTC Photo Metadata Standard 2023.2, "Digital Source Type". Adobe, "XMP Specification Part 3: Storage in Files" (2020).
The mark is one packet of constant bytes, so that it costs a picture next to nothing.
"""

from __future__ import annotations

import os
from typing import IO, Any

from PIL import Image, PngImagePlugin

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    f"<Iptc4xmpExt:DigitalSourceType>{DIGITAL_SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
).encode()
_KEYWORD = "XML:com.adobe.xmp"
ITXT = _KEYWORD.encode() + b"\0\0\0\0\0" + XMP  # of PNG: not compressed, no language, no translated keyword


class MarkedImage(Image.Image):
    """A drawn picture. Pillow's own `save` writes its mark too, into every format for which Pillow writes XMP.

    Pictures that Pillow makes of it, such as copies, are plain images without a mark.
    """

    def __init__(self, image: Image.Image) -> None:
        """Take over the pixels of `image`, without a copy."""
        super().__init__()
        vars(self).update(vars(image))

    def __eq__(self, other: object) -> bool:
        """As Pillow's, which compares classes first: here a plain image with the same pixels is equal."""
        return self.copy() == (other.copy() if isinstance(other, MarkedImage) else other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # as Pillow's own

    def save(
        self,
        fp: str | bytes | os.PathLike[str] | os.PathLike[bytes] | IO[bytes],
        format: str | None = None,
        **params: Any,
    ) -> None:
        """As `PIL.Image.Image.save`. XMP of the caller stays as it is."""
        super().save(fp, format, **with_mark(params))


def with_mark(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `PIL.Image.Image.save`, and the mark. `pnginfo` is PNG's place for it, `xmp` that of the others."""
    texts = PngImagePlugin.PngInfo()
    given: PngImagePlugin.PngInfo | None = options.get("pnginfo")
    texts.chunks = [] if given is None else list(given.chunks)
    if not any(chunk[1].startswith(_KEYWORD.encode()) for chunk in texts.chunks):
        texts.add(b"iTXt", ITXT)
    return {"xmp": XMP, **options, "pnginfo": texts}
