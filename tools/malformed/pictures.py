#!/usr/bin/env python3
"""Writes tests/data/malformed/pictures.pack: damaged and hostile pictures, every one of which must be refused.
Each is a line "NAME SIZE\\n", then SIZE bytes. Needs numpy and pillow."""
import io
import os
import struct
import sys
import zlib

import numpy as np
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
from image_pictures import picture

OUT = os.path.join(os.path.dirname(os.path.dirname(HERE)), "tests/data/malformed/pictures.pack")
cases = {}


def chunk(kind, data, crc=0):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ crc)


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def ihdr(w=8, h=8, depth=8, colour=2, compression=0, filtering=0, interlace=0):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, compression, filtering, interlace))


ROWS = b"".join(b"\0" + bytes(range(i, i + 24)) for i in range(8))
IDAT, IEND, PLTE = chunk(b"IDAT", zlib.compress(ROWS)), chunk(b"IEND", b""), chunk(b"PLTE", bytes(range(12)))
INDEXED = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes([0, 1, 2, 3] * 2) for _ in range(8))))


def png(name, *parts):
    cases["png-" + name] = SIGNATURE + b"".join(parts)


def png_cases():
    whole = SIGNATURE + ihdr() + IDAT + IEND
    for n in [*range(2, 8), *range(8, len(whole) - 12, 3), *range(len(whole) - 12, len(whole))]:
        cases[f"png-cut-{n}"] = whole[:n]
    for i in range(8):
        b = bytearray(whole)
        b[i] ^= 0x40
        cases[f"png-signature-{i}"] = bytes(b)
    for name, w, h in (("0x8", 0, 8), ("8x0", 8, 0), ("0x0", 0, 0), ("65535x65535", 65535, 65535), ("8192x8193", 8192, 8193), ("2e31", 1 << 31, 1),
                       ("4294967295", 0xFFFFFFFF, 0xFFFFFFFF), ("1x2000000", 1, 2000000), ("2000000x1", 2000000, 1), ("2147483647x1", 0x7FFFFFFF, 1)):
        png("size-" + name, ihdr(w, h), IDAT, IEND)
    for name, h in (("100000x2", ihdr(100000, 2)), ("9x8", ihdr(9, 8)), ("8x9", ihdr(8, 9)), ("4096x4096", ihdr(4096, 4096)), ("8000x8000i", ihdr(8000, 8000, interlace=1))):
        png("too-few-pixels-" + name, h, IDAT, IEND)
    for depth, colour in ((0, 0), (3, 0), (5, 0), (7, 0), (9, 0), (32, 0), (255, 0), (1, 2), (2, 2), (4, 2), (16, 3), (0, 3), (1, 4), (4, 4), (2, 6), (4, 6), (8, 1), (8, 5), (8, 7), (8, 8), (8, 255)):
        png(f"depth-{depth}-colour-{colour}", ihdr(8, 8, depth, colour), PLTE if colour == 3 else b"", IDAT, IEND)
    png("compression-1", ihdr(compression=1), IDAT, IEND)
    png("compression-255", ihdr(compression=255), IDAT, IEND)
    png("filter-method-1", ihdr(filtering=1), IDAT, IEND)
    png("filter-method-64", ihdr(filtering=64), IDAT, IEND)
    png("interlace-2", ihdr(interlace=2), IDAT, IEND)
    png("interlace-255", ihdr(interlace=255), IDAT, IEND)
    png("ihdr-12", chunk(b"IHDR", ihdr()[8:20]), IDAT, IEND)
    png("ihdr-14", chunk(b"IHDR", ihdr()[8:21] + b"\0"), IDAT, IEND)
    png("ihdr-missing", IDAT, IEND)
    png("ihdr-second", chunk(b"tEXt", b"a\0b"), ihdr(), IDAT, IEND)
    png("ihdr-twice", ihdr(), ihdr(), IDAT, IEND)
    text, trns = chunk(b"tEXt", b"a\0b"), chunk(b"tRNS", b"\0\1")
    parts = {"ihdr": ihdr(8, 8, 8, 3), "text": text, "plte": PLTE, "trns": trns, "idat": INDEXED, "iend": IEND}
    for bad in parts:
        png("crc-" + bad, *(v[:-1] + bytes([v[-1] ^ 1]) if k == bad else v for k, v in parts.items()))
        if bad != "iend":
            png("length-plus-1-" + bad, *(struct.pack(">I", len(v) - 11) + v[4:] if k == bad else v for k, v in parts.items()))
            png("length-huge-" + bad, *(b"\x7f\xff\xff\xff" + v[4:] if k == bad else v for k, v in parts.items()))
            png("length-over-" + bad, *(b"\xff\xff\xff\xff" + v[4:] if k == bad else v for k, v in parts.items()))
        if bad in ("ihdr", "idat", "iend", "plte"):
            png("missing-" + bad, *(v for k, v in parts.items() if k != bad))
        png("type-" + bad, *(v[:4] + b"I\1\xffT" + v[8:] if k == bad else v for k, v in parts.items()))
    png("plte-4", ihdr(8, 8, 8, 3), chunk(b"PLTE", b"1234"), INDEXED, IEND)
    png("plte-0", ihdr(8, 8, 8, 3), chunk(b"PLTE", b""), INDEXED, IEND)
    png("plte-771", ihdr(8, 8, 8, 3), chunk(b"PLTE", bytes(771)), INDEXED, IEND)
    png("plte-late", ihdr(8, 8, 8, 3), INDEXED, PLTE, IEND)
    png("plte-twice", ihdr(8, 8, 8, 3), PLTE, PLTE, INDEXED, IEND)
    png("palette-index-over", ihdr(8, 8, 8, 3), chunk(b"PLTE", bytes(9)), INDEXED, IEND)
    z = zlib.compress(ROWS)
    for name, data in (("empty", b""), ("one-byte", b"\x78"), ("no-zlib", b"hello, world, this is not deflate"), ("zeros", bytes(64)), ("window", b"\xf8" + z[1:]),
                       ("method", b"\x77" + z[1:]), ("header-check", z[:1] + b"\x9d" + z[2:]), ("dictionary", b"\x78\x20" + z[2:]), ("block-type", z[:2] + b"\x07" + z[3:]),
                       ("adler", z[:-1] + bytes([z[-1] ^ 1])), ("no-adler", z[:-4]), ("half", z[:len(z) // 2]), ("stored-length", b"\x78\x01\x01\xc8\x00\x00\x00" + ROWS),
                       ("distance", b"\x78\x9c\x4b\x04\x51\x00\x00\x00\x00")):
        png("idat-" + name, ihdr(), chunk(b"IDAT", data), IEND)
    for f in (5, 6, 127, 255):
        png(f"row-filter-{f}", ihdr(), chunk(b"IDAT", zlib.compress(bytes([f]) + ROWS[1:])), IEND)
    png("row-filter-last", ihdr(), chunk(b"IDAT", zlib.compress(ROWS[:175] + b"\x09" + ROWS[176:])), IEND)
    png("rows-7-of-8", ihdr(), chunk(b"IDAT", zlib.compress(ROWS[:175])), IEND)
    png("rows-1-byte-short", ihdr(), chunk(b"IDAT", zlib.compress(ROWS[:-1])), IEND)
    png("unknown-critical", ihdr(), chunk(b"ABCD", b"xyz"), IDAT, IEND)
    png("animation", ihdr(), chunk(b"acTL", struct.pack(">II", 2, 0)), IDAT, IEND)
    png("cgbi", chunk(b"CgBI", b"\x50\0\x20\x02"), ihdr(), IDAT, IEND)
    png("text-bomb", ihdr(), *(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes([97]) * (1 << 20), 9)[:-1]) for _ in range(4)), IDAT[:-1])
    bomb = zlib.compressobj(9)
    data = bomb.compress(bytes(1 << 20)) + bomb.flush()
    png("pixel-bomb-cut", ihdr(8192, 8192), chunk(b"IDAT", data), IEND)


def cut(kind, data, n):
    for i in range(n):
        at = 12 + (len(data) - 13) * i // (n - 1)
        cases[f"{kind}-cut-{at}"] = data[:at]


def find(data, marker):
    return data.index(bytes([0xFF, marker]))


def jpeg_cases():
    def save(image, **kw):
        f = io.BytesIO()
        image.save(f, "JPEG", **kw)
        return f.getvalue()

    image = Image.fromarray(picture("smooth", 3, 24, 16, 3))
    base, progressive = save(image, quality=40), save(image, quality=40, progressive=True)
    cut("jpeg", base[:-1], 16)
    cut("jpeg-progressive", progressive[:-1], 16)
    cases["jpeg-cmyk"] = save(image.convert("CMYK"), quality=30)

    def patch(name, marker, offset, new, data=base):
        at = find(data, marker) + offset
        cases["jpeg-" + name] = data[:at] + new + data[at + len(new):]

    sof, dqt, dht, sos = 0xC0, 0xDB, 0xC4, 0xDA
    patch("0-high", sof, 5, b"\0\0")
    patch("0-wide", sof, 7, b"\0\0")
    patch("65535x65535", sof, 5, b"\xff\xff\xff\xff")
    patch("65500x65500", sof, 5, b"\xff\xdc\xff\xdc")
    patch("taller", sof, 5, b"\x40\x00")
    patch("wider", sof, 7, b"\x40\x00")
    patch("12-bit", sof, 4, b"\x0c")
    patch("0-bit", sof, 4, b"\x00")
    for n in (0, 2, 4, 255):
        patch(f"components-{n}", sof, 9, bytes([n]))
    patch("sampling-0", sof, 11, b"\0")
    patch("sampling-5", sof, 11, b"\x55")
    patch("table-3", sof, 12, b"\x03")
    patch("table-200", sof, 12, b"\xc8")
    patch("same-ids", sof, 13, base[find(base, sof) + 10:find(base, sof) + 11])
    patch("lossless", sof, 1, b"\xc3")
    patch("hierarchical", sof, 1, b"\xc5")
    patch("sof-length-0", sof, 2, b"\0\0")
    patch("sof-length-1", sof, 2, b"\0\1")
    patch("dqt-length", dqt, 2, b"\xff\xff")
    patch("dqt-number", dqt, 4, b"\x0f")
    patch("dht-counts", dht, 5, b"\xff" * 16)
    patch("dht-number", dht, 4, b"\x3f")
    patch("dht-length", dht, 2, b"\0\3")
    patch("dht-overfull", dht, 5, b"\x05\x05")
    patch("sos-components-0", sos, 4, b"\0")
    patch("sos-components-5", sos, 4, b"\5")
    patch("sos-component", sos, 5, b"\x77")
    patch("sos-table", sos, 6, b"\x33")
    patch("second-sof", dht, 0, base[find(base, sof):find(base, sof) + 19])
    patch("second-soi", dqt, 0, b"\xff\xd8")
    patch("marker-02", dqt, 0, b"\xff\x02")
    for marker, name in ((dqt, "dqt"), (sof, "sof"), (sos, "sos")):  # without DHT the standard's own tables are meant
        at = find(base, marker)
        length = struct.unpack(">H", base[at + 2:at + 4])[0]
        cases[f"jpeg-no-{name}"] = base[:at] + base[at + 2 + length:]
    at = find(base, sos) + 14
    cases["jpeg-no-data"] = base[:at] + b"\xff\xd9"
    cases["jpeg-marker-in-data"] = base[:at + 9] + b"\xff\xd9"
    cases["jpeg-only-soi"] = b"\xff\xd8\xff"
    cases["jpeg-soi-eoi"] = b"\xff\xd8\xff\xd9"
    cases["jpeg-ff"] = b"\xff\xd8" + b"\xff" * 500
    cases["jpeg-codes"] = base[:at] + b"\xff\x00" * 60 + b"\xff\xd9"
    first = find(progressive, sos)  # the first scan once more, over and over
    second = progressive.index(b"\xff\xc4", first)
    cases["jpeg-scans"] = progressive[:second] + progressive[first:second] * 150 + b"\xff\xd9"
    at = find(progressive, sos) + 4 + 1 + 2 * progressive[find(progressive, sos) + 4]
    cases["jpeg-progression"] = progressive[:at] + b"\x05\x03\x00" + progressive[at + 3:]
    cases["jpeg-spectral"] = progressive[:at] + b"\x00\x40\x00" + progressive[at + 3:]


def webp_cases():
    def save(image, **kw):
        f = io.BytesIO()
        image.save(f, "WEBP", **kw)
        return f.getvalue()

    image = Image.fromarray(picture("smooth", 3, 24, 16, 4))
    lossy, lossless, alpha = save(image.convert("RGB"), quality=40), save(image.convert("RGB"), lossless=True), save(image, quality=40)
    for name, data in (("lossy", lossy), ("lossless", lossless), ("alpha", alpha)):
        cut("webp-" + name, data, 8)

    def riff(*chunks):
        body = b"WEBP" + b"".join(k + struct.pack("<I", len(d)) + d + b"\0" * (len(d) & 1) for k, d in chunks)
        return b"RIFF" + struct.pack("<I", len(body)) + body

    vp8, vp8l = lossy[20:], lossless[20:]
    cases["webp-riff-size"] = lossy[:4] + b"\xff\xff\xff\x7f" + lossy[8:]
    cases["webp-riff-size-max"] = lossy[:4] + b"\xff\xff\xff\xff" + lossy[8:]
    cases["webp-riff-small"] = lossy[:4] + b"\x04\0\0\0" + lossy[8:]
    cases["webp-empty"] = riff()
    cases["webp-no-chunk"] = riff((b"EXIF", b"abcd"))
    cases["webp-chunk-size"] = lossy[:16] + b"\xff\xff\xff\x7f" + vp8
    cases["webp-kind"] = riff((b"VP9 ", vp8))
    cases["webp-signature"] = riff((b"VP8 ", vp8[:3] + b"\x9d\x01\x2b" + vp8[6:]))
    cases["webp-not-key"] = riff((b"VP8 ", bytes([vp8[0] | 1]) + vp8[1:]))
    cases["webp-0-wide"] = riff((b"VP8 ", vp8[:6] + b"\0\0" + vp8[8:]))
    cases["webp-0-high"] = riff((b"VP8 ", vp8[:8] + b"\0\0" + vp8[10:]))
    cases["webp-profile"] = riff((b"VP8 ", bytes([vp8[0] | 0x0E]) + vp8[1:]))
    cases["webp-partition"] = riff((b"VP8 ", vp8[:1] + b"\xff\xff" + vp8[3:]))
    cases["webp-16383"] = riff((b"VP8 ", vp8[:6] + b"\xff\x3f\xff\x3f" + vp8[10:]))
    cases["webp-lossless-signature"] = riff((b"VP8L", b"\x2e" + vp8l[1:]))
    cases["webp-lossless-version"] = riff((b"VP8L", vp8l[:4] + bytes([vp8l[4] | 0xE0]) + vp8l[5:]))
    cases["webp-lossless-16384"] = riff((b"VP8L", b"\x2f\xff\xff\xff\x0f" + vp8l[5:]))
    cases["webp-lossless-4096-of-nothing"] = riff((b"VP8L", b"\x2f\xff\xcf\xff\x03" + b"\xff" * 12))
    cases["webp-vp8x-canvas"] = riff((b"VP8X", b"\0\0\0\0" + b"\xff" * 6), (b"VP8 ", vp8))
    cases["webp-vp8x-other-size"] = riff((b"VP8X", b"\0\0\0\0" + b"\x07\0\0\x07\0\0"), (b"VP8 ", vp8))
    cases["webp-vp8x-alone"] = riff((b"VP8X", b"\0\0\0\0" + b"\x17\0\0\x0f\0\0"))
    cases["webp-vp8x-short"] = riff((b"VP8X", b"\0\0"), (b"VP8 ", vp8))
    cases["webp-animated"] = riff((b"VP8X", b"\x02\0\0\0" + b"\x17\0\0\x0f\0\0"), (b"ANIM", bytes(6)), (b"ANMF", bytes(16) + b"VP8 "))
    for i in range(6):
        cases[f"webp-noise-{i}"] = riff((b"VP8L", b"\x2f\x17\xc0\x03\0" + bytes((37 * i * j + j * j + 91 * i) & 255 for j in range(i * 3 + 2))))


def ppm_cases():
    pixels = bytes(12)
    for name, data in (("only-magic", b"P6\n"), ("no-size", b"P6\n\n\n"), ("no-height", b"P6\n2"), ("no-maxval", b"P6\n2 2\n"), ("no-space", b"P6\n2 2\n255"), ("cut", b"P6\n2 2\n255\n" + pixels[:-1]),
                       ("empty", b"P6\n2 2\n255\n"), ("0-wide", b"P6\n0 2\n255\n" + pixels), ("0-high", b"P6\n2 0\n255\n" + pixels), ("negative", b"P6\n-2 2\n255\n" + pixels),
                       ("maxval-0", b"P6\n2 2\n0\n" + pixels), ("maxval-65536", b"P6\n2 2\n65536\n" + pixels * 2), ("maxval-huge", b"P6\n2 2\n99999999999\n" + pixels), ("over-maxval", b"P6\n2 2\n7\n" + bytes([8]) * 12),
                       ("over-maxval-16", b"P5\n2 1\n1000\n\xff\xff\xff\xff"), ("65535x65535", b"P6\n65535 65535\n255\n" + pixels), ("overflow", b"P6\n4294967297 1\n255\n" + pixels),
                       ("overflow-64", b"P6\n18446744073709551617 1\n255\n" + pixels), ("long", b"P6\n1 2000000\n255\n" + pixels), ("8192x8193", b"P5\n8192 8193\n255\n" + pixels), ("float", b"P6\n2.0 2\n255\n" + pixels),
                       ("letters", b"P6\ntwo 2\n255\n" + pixels), ("comment-to-end", b"P6\n# and so on"), ("cut-16", b"P6\n2 2\n65535\n" + pixels), ("ascii", b"P3\n1 1\n255\n1 2 3\n"), ("bitmap", b"P4\n8 1\n\xff"),
                       ("pam", b"P7\nWIDTH 1\n"), ("float-map", b"PF\n1 1\n-1\n" + pixels), ("P8", b"P8\n1 1\n255\n" + pixels), ("maxval-then-letter", b"P6\n2 2\n255x" + pixels)):
        cases["ppm-" + name] = data


def other_cases():
    for name, data in (("empty", b""), ("one-byte", b"\x89"), ("two-bytes", b"\xff\xd8"), ("gif", b"GIF89a\1\0\1\0\0\0\0;"), ("bmp", b"BM" + bytes(60)), ("tiff", b"II*\0\x08\0\0\0\0\0"), ("text", b"hello, world\n"),
                       ("zeros", bytes(4096)), ("ones", b"\xff" * 4096), ("pdf", b"%PDF-1.4\n"), ("wav", b"RIFF\x24\0\0\0WAVEfmt "), ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ("elf", b"\x7fELF\2\1\1"),
                       ("gzip", b"\x1f\x8b\x08\0\0\0\0\0"), ("zip", b"PK\3\4" + bytes(26)), ("jxl", b"\xff\x0a\0\0"), ("avif", b"\0\0\0\x1cftypavif\0\0\0\0"), ("heic", b"\0\0\0\x18ftypheic\0\0\0\0")):
        cases["other-" + name] = data


if __name__ == "__main__":
    png_cases(), jpeg_cases(), webp_cases(), ppm_cases(), other_cases()
    os.makedirs(os.path.dirname(OUT), exist_ok=True)
    with open(OUT, "wb") as f:
        for name, data in cases.items():
            f.write(f"{name} {len(data)}\n".encode() + data)
    print(f"{len(cases)} pictures, {os.path.getsize(OUT)} bytes")
