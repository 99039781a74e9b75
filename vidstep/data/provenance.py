"""What a file of generated pixels says about where it comes from, in the terms of the field.

A generated video or picture carries a sentence that people read and an XMP packet that programs
read, whose `Iptc4xmpExt:DigitalSourceType` is IPTC's "trainedAlgorithmicMedia" (made by a trained
model) or "compositeWithTrainedAlgorithmicMedia" (next to recorded pixels).
"""

import pathlib
import struct
import uuid
from xml.sax.saxutils import escape

from PIL.PngImagePlugin import PngInfo

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
XMP_BOX = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac")  # XMP specification, part 3


def sentence(made_by: str, composite: bool = False) -> str:
  """What people read."""
  what = "Partly AI-generated (beside recorded pixels)" if composite else "AI-generated"
  return f"{what}, made by {made_by}"


def xmp(made_by: str, composite: bool = False) -> bytes:
  """The XMP packet that programs read."""
  source = "compositeWithTrainedAlgorithmicMedia" if composite else "trainedAlgorithmicMedia"
  return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPES}{source}</Iptc4xmpExt:DigitalSourceType>
   <xmp:CreatorTool>{escape(made_by)}</xmp:CreatorTool>
   <dc:description><rdf:Alt>
    <rdf:li xml:lang="x-default">{escape(sentence(made_by, composite))}</rdf:li>
   </rdf:Alt></dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>""".encode()


def picture_options(suffix: str, made_by: str, composite: bool = False) -> dict:
  """What to hand to Pillow's `Image.save` for a .png, .webp or .gif."""
  if suffix == ".gif":
    return {"comment": sentence(made_by, composite)}
  if suffix == ".webp":
    return {"xmp": xmp(made_by, composite)}
  info = PngInfo()
  info.add_text("Description", sentence(made_by, composite))
  info.add_itxt("XML:com.adobe.xmp", xmp(made_by, composite).decode())
  return {"pnginfo": info}


def tag_mp4(path: pathlib.Path, made_by: str, composite: bool = False):
  """Appends the XMP packet to an .mp4, as a box that players skip."""
  packet = XMP_BOX.bytes + xmp(made_by, composite)
  with open(path, "ab") as f:
    f.write(struct.pack(">I", 8 + len(packet)) + b"uuid" + packet)
