"""Hostile pictures and slides: every layout of a TIFF, damaged and foreign files, and things that are no files."""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from fuzzing.case import Case
from fuzzing.damage import change_entry, damaged, swap_entries
from fuzzing.stock import Stock, picture

SLIDE_ENDINGS = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm")
OTHER_ENDINGS = (".png", ".jpg", ".jpeg", ".ome.tif", ".qptiff", ".jp2", ".btf", ".vsi", ".xyz", "")
_DTYPES = ("uint8",) * 6 + (
    "uint16",
    "uint16",
    "int8",
    "int16",
    "uint32",
    "float32",
    "float16",
    "float64",
    "bool",
    "complex64",
)
_COMPRESSIONS = (
    None,
    "deflate",
    "lzw",
    "packbits",
    "jpeg",
    "jpeg2000",
    "jpegxl",
    "webp",
    "zstd",
    "lzma",
    "png",
    "lerc",
)
_LOSSLESS = (None, "deflate", "lzw", "packbits", "zstd", "lzma")
_PHOTOMETRIC = ("rgb",) * 5 + (
    "minisblack",
    "minisblack",
    "miniswhite",
    "separated",
    "ycbcr",
    "cielab",
    "palette",
    34892,
)


def images(rng: random.Random, folder: Path, stock: Stock) -> Case:
    """One hostile slide, with a command that reads it."""
    make = rng.choices(
        (written, pages, ome, damaged_file, photograph, impostor, no_file, damaged_slide), (10, 4, 4, 6, 4, 4, 2, 4)
    )[0]
    if make is damaged_slide and not stock.slides:
        make = damaged_file
    what, file, pixels = make(rng, folder, stock)
    commands = ("translate", "translate", "translate", "fill", "dry", "info", "check", "thumbnail", "evaluate")
    return reading(rng.choice(commands) if pixels is None else "translate", what, file, stock, pixels)


def reading(command: str, what: str, file: Path, stock: Stock, pixels: np.ndarray | None) -> Case:
    """A case in which kin reads ``file``; ``pixels`` are those that it must find if it opens the file."""
    name = f"./{file}" if str(file).startswith("-") else str(file)
    case = Case(f"{command}: {what}", [], names=(_shown(file.name), file.name))
    if command in ("translate", "fill", "dry"):
        more = {"fill": ["--on-read-error", "fill"], "dry": ["--dry-run"]}.get(command, [])
        small = ["--source-mpp", "0.5", "--mpp", "4"] if file in stock.slides or "slide of" in what else []
        tissue = ["--tissue", "none"] if pixels is not None else []
        case.arguments = ["translate", name, "-o", "out.ome.tif", *stock.translate, *more, *small, *tissue]
        case.output = None if command == "dry" else "out.ome.tif"
    elif command == "thumbnail":
        options = ["--method", "tin", "--thumbnail", name, "-o", "out.ome.tif"]
        case.arguments = ["translate", str(stock.slide), *options, *stock.translate]
    elif command == "evaluate":
        case.arguments, case.output = ["evaluate", name, "--metrics", "sobel", "--tile-size", "128"], None
    else:
        case.arguments, case.output = [command, name], None
        case.on_stdout = command == "check"
    if pixels is not None and command == "translate":
        case.verify = lambda code: _same_pixels(file, pixels) if code == 0 else ""
    return case


def _same_pixels(file: Path, wanted: np.ndarray) -> str:
    """Compare what kin reads with what was written; a picture that cannot be read as RGB must have been refused."""
    from kin_cli.geometry import Box
    from kin_cli.slide.open import open_slide

    if wanted.size == 0:
        return "WRONG PIXELS: translated, though it is neither RGB nor grey of 8 or 16 bits"
    with open_slide(file) as slide:
        size = slide.levels[0]
        if (size.height, size.width) != wanted.shape[:2]:
            return f"WRONG PIXELS: read as {size}, written as {wanted.shape}"
        found = slide.read(0, Box(0, 0, size.width, size.height))
    off = int(np.abs(np.asarray(found).astype(int) - wanted).max())
    return f"WRONG PIXELS: up to {off} grey levels off" if off > 1 else ""


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() or 0xDC80 <= ord(c) <= 0xDCFF else "?" for c in " ".join(name.split()))


Made = tuple[str, Path, "np.ndarray | None"]
NOT_RGB = np.zeros((0, 0, 3), np.uint8)


def written(rng: random.Random, folder: Path, _stock: Stock) -> Made:
    """A TIFF file of a random layout; the pixels that are right where that is beyond doubt."""
    file = folder / f"in{rng.choice(('.tif', '.tiff', '.svs', '.ome.tif', '.qptiff', '.tif'))}"
    while True:
        channels, dtype, photometric = (
            rng.choice((1, 2, 3, 3, 3, 3, 4, 4, 5)),
            rng.choice(_DTYPES),
            rng.choice(_PHOTOMETRIC),
        )
        options: dict[str, Any] = {"photometric": photometric, "compression": rng.choice(_COMPRESSIONS)}
        options["planarconfig"] = rng.choice(("contig", "contig", "separate")) if channels > 1 else None
        if rng.random() < 0.6:
            options["tile"] = tuple(rng.choice((16, 64, 128, 256, 512)) for _ in range(2))
        else:
            options["rowsperstrip"] = rng.choice((1, 7, 64, 1000))
        if options["compression"] in ("deflate", "lzw"):  # with others readers differ in whether a predictor counts
            options["predictor"] = rng.choice((None, True))
        if channels > 3 and rng.random() < 0.7:
            options["extrasamples"] = [rng.choice((0, 1, 2))] * (channels - 3)
        if rng.random() < 0.3:
            options["resolution"] = tuple(rng.choice((0, 1, 2, 72, 20000, 40000, 1e9)) for _ in range(2))
            options["resolutionunit"] = rng.choice((1, 2, 3))
        values = picture(rng.choice((1, 63, 200, 256)), rng.choice((1, 65, 200, 320)), rng.randrange(100), channels)
        height, width = values.shape[:2]
        array = _as_dtype(values, dtype)
        if options["planarconfig"] == "separate":
            array = np.moveaxis(array, -1, 0)
        if channels == 1:
            array = array[..., 0] if array.ndim == 3 else array
        if photometric == "palette":
            options["colormap"] = np.arange(768, dtype=np.uint16).reshape(3, 256) * 85
        order, big = rng.choice("<<>"), rng.random() < 0.2
        try:
            with tifffile.TiffWriter(file, byteorder=order, bigtiff=big) as tiff:
                tiff.write(np.ascontiguousarray(array), metadata=None, **options)
            break
        except Exception:  # this combination cannot be written
            file.unlink(missing_ok=True)
    shown = ", ".join(f"{name} {value}" for name, value in options.items() if value is not None and name != "colormap")
    right = _right(values, dtype, options)
    return f"{width}×{height} px, {channels} × {dtype}, {order}, {shown}", file, right


def _as_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "uint16":
        return values.astype(np.uint16) * 257
    if dtype == "bool":
        return values > 127
    if dtype.startswith(("float", "complex")):
        return (values / np.float64(255)).astype(dtype)
    return (values // 2).astype(dtype) if dtype == "int8" else values.astype(dtype)


def _right(values: np.ndarray, dtype: str, options: dict[str, Any]) -> np.ndarray | None:
    """The RGB pixels of a picture where that is beyond doubt, an empty array if it is none, None if it depends."""
    channels, photometric = values.shape[-1], options["photometric"]
    if dtype in ("int8", "int16", "uint32", "float16", "float32", "float64", "complex64"):
        return NOT_RGB
    if channels in (2, 5) and photometric in ("minisblack", "miniswhite"):
        return NOT_RGB
    if dtype not in ("uint8", "uint16") or options["compression"] not in _LOSSLESS:
        return None
    if photometric == "rgb" and (channels == 3 or (channels == 4 and options.get("extrasamples") == [0])):
        return values[..., :3].astype(int)
    if (
        photometric == "rgb" and channels == 4 and options.get("extrasamples") in (None, [2])
    ):  # None: tifffile's default
        colours, opacity = values[..., :3].astype(int), values[..., 3:].astype(int)
        return np.rint((colours * opacity + 255 * (255 - opacity)) / 255).astype(int)
    return None


def pages(rng: random.Random, folder: Path, _stock: Stock) -> Made:
    """Several pages that are levels, channels, slices, labels or masks."""
    file = folder / f"in{rng.choice(('.tif', '.svs', '.qptiff', '.ome.tif'))}"
    count, tiled = rng.randrange(2, 7), rng.random() < 0.6
    told = []
    with tifffile.TiffWriter(file, bigtiff=rng.random() < 0.3, ome=False) as tiff:
        for number in range(count):
            side = rng.choice((256, 256, 128, 64, 200))
            channels = rng.choice((1, 3, 3, 3, 4))
            pixels = picture(side, side + rng.choice((0, 64)), number, channels)
            if channels == 1:
                pixels = pixels[..., 0]
            options: dict[str, Any] = {"tile": (64, 64)} if tiled else {}
            kind = rng.choice((0, 0, 1, 2, 4, 5))
            description = rng.choice(
                (None, "label", "Aperio Image Library\nmacro 100x100", "<xml", "Aperio Image|MPP = 0|AppMag = x")
            )
            photometric = "rgb" if channels > 1 else "minisblack"
            more = {"photometric": photometric, "description": description, "metadata": None, **options}
            tiff.write(pixels, subfiletype=0 if kind in (4, 5) else kind, **more)
            told.append((pixels.shape, kind))
    with tifffile.TiffFile(file, mode="r+b") as tiff:
        for page, (_, kind) in zip(tiff.pages, told, strict=True):
            if kind in (4, 5):  # masks, which tifffile does not write
                page.tags[254].overwrite(kind)
    if rng.random() < 0.2:
        data = bytearray(file.read_bytes())
        change_entry(data, rng)
        file.write_bytes(data)
    return f"pages {'; '.join(f'{shape} of type {kind}' for shape, kind in told)}", file, None


_XML = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;">]>'
    "<OME><Name>&d;&d;&d;</Name></OME>",
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><OME><Name>&x;</Name></OME>',
    "<OME>" * 5000,
    "<OME",
    "<OME></OME>",
    "<OME><Image><Pixels/></Image></OME>",
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
    '<Pixels DimensionOrder="{order}"'
    ' ID="Pixels:0" SizeC="{c}" SizeT="{t}" SizeX="{x}" SizeY="{y}" SizeZ="{z}" Type="{type}" PhysicalSizeX="{px}"'
    ' PhysicalSizeXUnit="{unit}" PhysicalSizeY="{py}"><Channel ID="Channel:0:0" SamplesPerPixel="{s}"/>'
    '<TiffData IFD="{ifd}" PlaneCount="{planes}"><UUID FileName="{name}">urn:uuid:1</UUID></TiffData>'
    "</Pixels></Image></OME>",
)


def ome(rng: random.Random, folder: Path, _stock: Stock) -> Made:
    """An OME-TIFF whose XML is hostile or contradicts the file."""
    number = ("0", "1", "3", "320", "256", "-1", "99999999999", "x", "")
    fields = {name: rng.choice(number) for name in ("c", "t", "z", "s", "ifd", "planes")}
    fields |= {"x": rng.choice(("320", "320", *number)), "y": rng.choice(("256", "256", *number))}
    fields |= {name: rng.choice(("0.5", "0", "-1", "NaN", "inf", "1e-30", "1e30", "zero", "")) for name in ("px", "py")}
    fields["order"] = rng.choice(("XYCZT", "XYZ", "", "TZCYX"))
    fields["type"] = rng.choice(("uint8", "uint16", "float", "unknown", ""))
    fields["unit"] = rng.choice(("µm", "mm", "m", "pixel", "reference frame", "", "furlong"))
    fields["name"] = rng.choice(("in.ome.tif", "missing.ome.tif", "/etc/passwd", "../stock/slide.tif", "pipe", "", "."))
    if fields["name"] == "pipe":
        os.mkfifo(folder / "pipe")
    text = rng.choice((_XML[-1], _XML[-1], _XML[-1], *_XML)).replace("{", "{{").replace("}", "}}")
    for name in fields:
        text = text.replace("{{" + name + "}}", "{" + name + "}")
    text = text.format(**fields)
    content = text.encode(rng.choice(("utf-8", "utf-8", "utf-16", "latin-1")), errors="replace")
    file = folder / "in.ome.tif"
    shape = rng.choice(((256, 320, 3), (3, 256, 320), (256, 320)))
    pixels = picture(256, 320)
    pixels = {(256, 320, 3): pixels, (3, 256, 320): np.moveaxis(pixels, -1, 0).copy(), (256, 320): pixels[..., 0]}[
        shape
    ]
    photometric = "rgb" if shape == (256, 320, 3) else "minisblack"
    tile = rng.choice(({}, {"tile": (64, 64)}))
    tifffile.imwrite(file, pixels, photometric=photometric, description=content, metadata=None, **tile)
    return f"OME-XML {text[:40]}… {shape} {fields}", file, None


def damaged_file(rng: random.Random, folder: Path, stock: Stock) -> Made:
    """A sound file with damaged bytes."""
    names = (
        "slide.tif",
        "plain.tif",
        "jpeg.svs",
        "big.tif",
        "slide.ome.tif",
        "photo.png",
        "photo.jpg",
        "done.ome.tif",
        "photo.jp2",
    )
    source = stock.folder / rng.choice(names)
    if source.suffix in (".tif", ".svs") and rng.random() < 0.5:
        how, content = damaged(source.read_bytes(), rng, of=(change_entry, swap_entries))
    else:
        how, content = damaged(source.read_bytes(), rng)
    file = folder / f"in{''.join(source.suffixes)}"
    file.write_bytes(content)
    return f"{source.name} after {how}", file, None


def damaged_slide(rng: random.Random, folder: Path, stock: Stock) -> Made:
    """A real slide with damaged bytes; of a DICOM series one file."""
    source = rng.choice(stock.slides)
    how, content = damaged(source.read_bytes(), rng)
    if source.suffix.lower() == ".dcm":
        for other in source.parent.glob("*.dcm"):
            (folder / other.name).write_bytes(other.read_bytes())
    file = folder / source.name
    file.write_bytes(content)
    return f"slide of {source.name} after {how}", file, None


def photograph(rng: random.Random, folder: Path, _stock: Stock) -> Made:
    """A PNG, JPEG or other photograph in an unusual mode."""
    photo = Image.fromarray(picture(rng.choice((1, 64, 200)), rng.choice((1, 64, 300)), rng.randrange(100)))
    kind = rng.choice(("PNG", "PNG", "JPEG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "MPO", "PPM", "ICO"))
    mode = rng.choice(("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "I;16", "I", "F", "LAB", "HSV"))
    options: dict[str, Any] = {}
    if kind == "JPEG":
        exif = Image.Exif()
        exif[0x0112] = rng.randrange(10)
        options = {"progressive": rng.random() < 0.5, "quality": rng.choice((1, 50, 100)), "exif": exif}
        options["dpi"] = rng.choice(((0, 0), (72, 72), (65535, 65535), (72, 36)))
    if kind == "PNG":
        options = {"bits": rng.choice((8, 4, 2, 1)), "transparency": 0} if mode == "P" else {}
        options["dpi"] = rng.choice(((0, 0), (72, 72), (1e5, 1e5), (50800, 25400)))
    try:
        changed = photo.convert(mode) if mode != "I;16" else photo.convert("I").convert("I;16")
        buffer = io.BytesIO()
        changed.save(buffer, kind, **options)
    except Exception:  # this mode cannot be written so
        kind, buffer = "PNG", io.BytesIO()
        photo.save(buffer, kind)
    content, how = buffer.getvalue(), ""
    if kind == "PNG" and rng.random() < 0.3:
        how, content = rng.choice(_PNG_CHANGES)(content, rng)
    elif rng.random() < 0.3:
        how, content = damaged(content, rng)
    ending = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}.get(kind, f".{kind.lower()}")
    file = folder / f"in{rng.choice((ending, ending, '.png', '.tif'))}"
    file.write_bytes(content)
    return f"{kind} of mode {mode} {how} {sorted(options)}", file, None


def _png_sizes(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Give a PNG other sides, with a checksum that is right."""
    import zlib

    data = bytearray(content)
    struct.pack_into(">II", data, 16, *(rng.choice((0, 1, 65535, 1 << 20, (1 << 31) - 1)) for _ in range(2)))
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return "with other sides", bytes(data)


def _png_header(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    import zlib

    data = bytearray(content)
    data[24 + rng.randrange(5)] = rng.choice((0, 1, 2, 3, 4, 6, 7, 8, 16, 255))
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return "with another header", bytes(data)


_PNG_CHANGES = (_png_sizes, _png_header)


def impostor(rng: random.Random, folder: Path, _stock: Stock) -> Made:
    """Another kind of file under the name of a slide."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("slide.svs", b"no slide")
    contents: dict[str, bytes] = {
        "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
        "pointer of LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n",
        "JSON": b'{"message": "not found"}',
        "empty": b"",
        "one byte": b"I",
        "text": "Dürer\n".encode("latin-1") * 50,
        "zip": archive.getvalue(),
        "gzip": b"\x1f\x8b\x08\0" + bytes(20),
        "ELF": b"\x7fELF" + bytes(200),
        "zeros": bytes(5000),
        "noise": rng.randbytes(3000),
        "TIFF signature": rng.choice((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))
        + rng.randbytes(rng.choice((0, 4, 12, 400))),
        "JPEG signature": b"\xff\xd8\xff\xe0" + rng.randbytes(300),
        "PNG signature": b"\x89PNG\r\n\x1a\n" + rng.randbytes(300),
        "DICOM signature": bytes(128) + b"DICM" + rng.randbytes(rng.choice((0, 50, 3000))),
        "VMS": b"[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=x.jpg\nMapFile=/etc/passwd\nOptimisationFile=x\n",
        "XML error": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "sparse": b"",
    }
    name = rng.choice(sorted(contents))
    file = folder / f"in{rng.choice(SLIDE_ENDINGS + OTHER_ENDINGS)}"
    file.write_bytes(contents[name])
    if name == "sparse":
        os.truncate(file, 1 << 34)
    if file.suffix == ".mrxs" and rng.random() < 0.7:
        (folder / "in").mkdir()
        (folder / "in" / "Slidedat.ini").write_bytes(rng.choice((b"", b"[GENERAL]\nSLIDE_ID = x\n", rng.randbytes(99))))
    return f"{name} as {file.suffix}", file, None


def no_file(rng: random.Random, folder: Path, stock: Stock) -> Made:
    """Something that is no regular file, or a sound slide under a difficult name."""
    kind = rng.choice(
        (
            "fifo",
            "folder",
            "dangling",
            "loop",
            "null",
            "zero",
            "socket",
            "missing",
            "newline",
            "bytes",
            "long",
            "unicode",
            "dash",
        )
    )
    file = folder / f"in{rng.choice(SLIDE_ENDINGS)}"
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind in ("dangling", "loop"):
        file.symlink_to(file.name if kind == "loop" else "nowhere")
    elif kind in ("null", "zero"):
        file = Path(f"/dev/{kind}")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as endpoint:
            here = Path.cwd()
            os.chdir(folder)
            endpoint.bind(file.name)
            os.chdir(here)
    elif kind != "missing":
        name = {
            "newline": "a\nb\t.tif",
            "bytes": os.fsdecode(b"sch\xf6n.tif"),
            "unicode": "скан 切片 🔬.tif",
            "dash": "-x.tif",
        }
        file = stock.copy("slide.tif", folder / name.get(kind, "n" * 251 + ".tif"))
        file = Path("./-x.tif") if kind == "dash" else file
    return f"{kind} as {file.suffix}", file, None
