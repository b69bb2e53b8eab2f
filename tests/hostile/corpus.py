"""Hostile and broken files of everything that the package reads: all are made here."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import sqlite3
import struct
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.hostile import pickles, saved
from tests.hostile.pickles import CALLS, called, older, scripted, whole, zipped

SHARES = (0.02, 0.3, 0.6, 0.9, 0.999)  # of a real file that are left
FLIPS = 6  # real files with some bytes changed, of each format


@dataclass(frozen=True)
class Case:
    """One file or folder, and as what it is opened."""

    kind: str  # of `bounded.LOADERS`
    name: str
    write: Callable[[Path], Path]  # into an empty folder; what is to be opened
    options: tuple[str, ...] = ()  # of a command, after the path

    def __str__(self):
        return f"{self.kind}: {self.name}"


def corpus():
    """All of it, the same each time."""
    return [
        *calls(),
        *others_of_models(),
        *files("model", saved.MODELS, saved.model),
        *of_safetensors(),
        *programs(),
        *hubs(),
        *file_system("model", "model.pt"),
        *images(),
        *in_folder_of_images(),
        *data(),
        *file_system("data", "data.npz"),
        *answers(),
        *stores(),
        *adapters(),
        *configurations(),
        *commands(),
    ]


def holding(kind, name, file, content, options=()):
    """The case of one file."""

    def write(folder):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content() if callable(content) else content)
        return path

    return Case(kind, name, write, options)


def calls():
    """Pickles that call something, in each way in which a model's file can hold one."""
    for name, call in CALLS.items():
        yield holding("model", f"calls {name}", "model.pt", zipped(whole(called(call))))
        content = partial(pickles.beside_weights, called(call))
        yield holding("model", f"calls {name}, beside weights", "model.pt", content)
    system = CALLS["os system"]
    for form in pickles.FORMS:
        yield holding("model", f"os system by {form}", "model.pt", zipped(whole(called(system, form), 4)))
    hidden = CALLS["bdb"]  # no name that is known to be harmful
    for form in pickles.FORMS:
        yield holding("model", f"bdb by {form}", "model.pt", zipped(whole(called(hidden, form), 4)))
    attack = whole(called(system))
    yield holding("model", "os system, older format", "model.pth", older(attack))
    yield holding("model", "os system after the older format", "m.pth", older(whole(b"}"), attack))
    yield holding("model", "os system, plain pickle", "model.pkl", attack)
    yield holding("model", "os system in text", "model.pkl", whole(called(system), 0)[2:])
    yield holding("model", "os system, TorchScript", "model.pt", scripted(attack))
    yield holding(
        "model",
        "os system in TorchScript's constants",
        "model.pt",
        zipped(whole(b"}"), [("constants.pkl", attack)]),
    )
    yield holding("model", "os system after a pickle", "model.pt", zipped(whole(b"}") + attack))
    yield holding("model", "os system in a hub's folder", "hub/pytorch_model.bin", zipped(attack))
    for name in ("bdb", "torch storage", "pickle"):
        yield holding("model", f"{name}, distributed", "dcp/.metadata", whole(called(CALLS[name])))
    yield holding("checkpoint", "os system", "checkpoint.pt", zipped(attack))
    yield holding("checkpoint", "bdb", "checkpoint.pt", zipped(whole(called(hidden))))


def others_of_models():
    """Pickles, tensors, modules and archives that are not what they seem."""
    for name, content in pickles.structures().items():
        yield holding("model", f"pickle: {name}", "model.pt", zipped(content))
        yield holding("model", f"pickle, older format: {name}", "model.pth", older(content))
        yield holding("checkpoint", f"pickle: {name}", "model.pt", zipped(content))
    for name, (present, before) in pickles.tensors().items():
        yield holding("model", f"tensors: {name}", "model.pt", present)
        yield holding("model", f"tensors, older format: {name}", "model.pth", before)
        yield holding("checkpoint", f"tensors: {name}", "model.pt", present)
    yield holding("model", "tensors: thousands of the same half megabyte", "model.pt", pickles.repeated)
    for name, content in pickles.modules().items():
        yield holding("model", f"module: {name}", "model.pt", content)
    for name, content in pickles.zips().items():
        yield holding("model", f"zip: {name}", "model.pt", content)
    magic = {
        "HDF5": b"\x89HDF\r\n\x1a\n",
        "gzip": b"\x1f\x8b",
        "ELF": b"\x7fELF\x02\x01\x01",
        "PNG": b"\x89PNG\r\n\x1a\n",
        "ONNX": b"\x08\x07\x12\x07",
        "text": b"import os\n",
        "web page": b"<!doctype html>",
        "null bytes": bytes(16),
        "ones": b"\xff" * 16,
        "LFS": b"version https://git-lfs",
        "tar": bytes(257) + b"ustar",
    }
    for name, start in magic.items():
        yield holding("model", f"magic: {name}", "model.pt", start + bytes(600))


def files(kind, names, real, inside=None):
    """Real files, cut short and with bytes changed.

    Args:
        names: of the files.
        real: makes one's bytes, of its name.
        inside: puts a file of such bytes where it is opened: (folder, name, content) to a path.
    """
    for name in names:
        broken = {f"cut to {share:.1%}": partial(cut, real, name, share) for share in SHARES}
        broken |= {
            f"{2**power} bytes changed": partial(flipped, real, name, 2**power) for power in range(FLIPS)
        }
        for how, content in broken.items():
            if inside is None:
                yield holding(kind, f"{name}, {how}", name, content)
            else:
                yield Case(kind, f"{name}, {how}", partial(put, inside, name, content))


def put(inside, name, content, folder):
    """The file where it belongs."""
    return inside(folder, name, content())


def cut(real, name, share):
    """So much of the file."""
    content = real(name)
    return content[: int(len(content) * share)]


def flipped(real, name, count):
    """The file with so many bytes changed, the same each time."""
    content = bytearray(real(name))
    randomness = random.Random(f"{name} {count}")
    for _ in range(count):
        # Half of them where the structure is: at the start and at the end.
        place = randomness.choice([randomness.randrange(len(content)), -randomness.randrange(1, 300)])
        content[place % len(content)] = randomness.choice([0, 0x7F, 0xFF, randomness.randrange(256)])
    return bytes(content)


def of_safetensors():
    """Headers that don't say what is there."""

    def made(header, body=bytes(16), length=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + body

    def one(**changes):
        return {"a.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}

    two = {"b.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    for name, content in {
        "length of 2^63": made(one(), length=2**63),
        "length of 99 MB": made(one(), length=99_000_000),
        "length beyond the file": made(one(), length=10_000),
        "length of 2": made(one(), length=2),
        "no JSON": made(b"{" + b"x" * 100),
        "nested lists": made(b'{"a":' + b"[" * 50_000),
        "nested objects": made(b'{"a":' * 50_000),
        "not a number": made(b'{"a": NaN}'),
        "no text": made(b'{"\xff\xfe": 1}'),
        "null": made(b"{}  null"),
        "overlapping": made(one() | two),
        "offsets reversed": made(one(data_offsets=[16, 0])),
        "offsets beyond": made(one(data_offsets=[0, 2**40])),
        "offsets of 2^64": made(
            b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 18446744073709551616]}}'
        ),
        "negative offsets": made(one(data_offsets=[-16, 0])),
        "a hole": made(one(data_offsets=[16, 32]), bytes(32)),
        "too much": made(one(), bytes(64)),
        "shape that overflows": made(one(shape=[2**33, 2**33])),
        "shape of none": made(one(shape=[2**40, 0], data_offsets=[0, 0]), b""),
        "shape of text": made(one(shape="4")),
        "negative shape": made(one(shape=[-4])),
        "a thousand dimensions": made(one(shape=[1] * 1000 + [4])),
        "unknown type": made(one(dtype="F7")),
        "a type of half bytes": made(one(dtype="F4", shape=[32])),
        "the same name twice": made(
            b'{"a": {"dtype":"U8","shape":[8],"data_offsets":[0,8]},'
            b'"a": {"dtype":"U8","shape":[8],"data_offsets":[8,16]}}'
        ),
        "metadata is a list": made({"__metadata__": [1]} | one()),
        "metadata names a huge network": made(
            {"__metadata__": {"architecture": "vit_giant_patch14_dinov2"}} | one()
        ),
        "metadata names code": made(
            {"__metadata__": {"architecture": "os:system", "model": "file.py:run"}} | one()
        ),
        "metadata of a huge size": made({"__metadata__": {"input_size": "[3, 1000000, 1000000]"}} | one()),
        "names with line ends": made({"a\n\x1b[31mb": one()["a.weight"]}),
        "an empty name": made({"": one()["a.weight"]}),
        "a name of a megabyte": made({"a" * 10**6: one()["a.weight"]}),
        "nothing": made({}, b""),
        "twenty thousand empty tensors": made(
            {f"a{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(20_000)}, b""
        ),
    }.items():
        yield holding("model", f"safetensors: {name}", "model.safetensors", content)
        if "metadata" not in name:
            yield holding("sums", f"safetensors: {name}", "sums.safetensors", content)


def programs():
    """Exported programs that ask for something else."""
    for name, old, new in (
        ("path traversal", b'"path_name": "weight_0"', b'"path_name": "../../../../../etc/passwd"'),
        ("pickled weights", b'"use_pickle": false', b'"use_pickle": true'),
        ("repeated weights", b'"sizes": [{"as_int": 4}]', b'"sizes": [{"as_int": 100000000000}]'),
        ("no figures", b'"as_int"', b'"as_text"'),
        ("negative strides", b'"strides": [{"as_int": 1}]', b'"strides": [{"as_int": -1}]'),
        ("zero strides", b'"strides": [{"as_int": 1}]', b'"strides": [{"as_int": 0}]'),
        ("an offset beyond", b'"storage_offset": {"as_int": 0}', b'"storage_offset": {"as_int": 9999999999}'),
        ("another type", b'"dtype": 7', b'"dtype": 77'),
        ("a type that is none", b'"dtype": 7', b'"dtype": "os"'),
        ("code for an operator", b"torch.ops.aten.conv2d.default", b"torch.ops.os.system.default"),
        ("Python for an operator", b"torch.ops.aten.conv2d.default", b"builtins.exec"),
        ("an operator that fills", b"torch.ops.aten.conv2d.default", b"torch.ops.aten.full.default"),
        ("an operator that loads", b"torch.ops.aten.conv2d.default", b"torch.ops.aten.from_file.default"),
        ("a loop", b'{"name": "input"}', b'{"name": "linear"}'),
        (
            "nested lists",
            b'"graph_module": {',
            b'"a": ' + b"[" * 50_000 + b"]" * 50_000 + b', "graph_module": {',
        ),
        ("no list", b'"nodes": [', b'"nodes": 3, "x": ['),
        ("a huge number", b'"as_int": 3', b'"as_int": 1' + b"0" * 5000),
    ):
        yield holding("model", f"program: {name}", "model.pt2", partial(pickles.exported, old, new))


def hubs():
    """Folders of model hubs, whose configurations ask for more than they hold."""

    def folder(name, **content):
        def write(home):
            for file, text in content.items():
                path = home / file.replace("__", ".").removesuffix("_")
                path.write_bytes(text if isinstance(text, bytes) else json.dumps(text).encode())
            return home

        return Case("model", f"hub: {name}", write)

    class_of = {"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}
    state = {"model__safetensors": saved.model("weights.safetensors")}
    evil = {"auto_map": {"AutoConfig": "run.Evil", "AutoModelForImageClassification": "run.Evil"}}
    code = b"open('canary-of-the-corpus', 'w').close()\nclass Evil: pass\n"
    yield folder("its own code", config__json=class_of | evil, run__py=code, **state)
    yield folder(
        "a huge network",
        config__json=class_of | {"hidden_sizes": [10**5] * 4, "embedding_size": 10**5},
        **state,
    )
    yield folder("a million layers", config__json=class_of | {"depths": [10**6] * 4}, **state)
    yield folder("a negative network", config__json=class_of | {"hidden_sizes": [-1] * 4}, **state)
    yield folder("no class", config__json=class_of | {"architectures": [None]}, **state)
    yield folder("unknown type", config__json=class_of | {"model_type": "os.system"}, **state)
    yield folder(
        "weights are an attack",
        config__json=class_of,
        pytorch_model__bin=zipped(whole(called(CALLS["os system"]))),
    )
    yield folder("nested configuration", config__json=b'{"a":' * 50_000, **state)
    yield folder("a configuration of numbers", config__json=[1, 2], **state)
    yield folder(
        "its shards are outside",
        model__safetensors__index__json={"weight_map": {"a": "/etc/passwd", "b": "../../x"}},
    )
    yield folder("its index is nested", model__safetensors__index__json=b"[" * 50_000)
    yield folder("its index is no object", model__safetensors__index__json=[1])
    yield folder("adapters on themselves", adapter_config__json={"base_model_name_or_path": "."})
    yield folder("adapters on a device", adapter_config__json={"base_model_name_or_path": "/dev/zero"})
    yield folder("adapters on a factory", adapter_config__json={"base_model_name_or_path": "os:abort"})
    yield folder(
        "adapters on a factory of its own",
        adapter_config__json={"base_model_name_or_path": "run.py:Evil"},
        run__py=code,
    )
    yield folder("adapters, nested", adapter_config__json=b"[" * 50_000)
    yield folder(
        "adapters of code",
        adapter_config__json={
            "base_model_name_or_path": "torchvision:squeezenet1_1",
            "peft_type": "os.system",
            "auto_mapping": {"parent_library": "run", "base_model_class": "Evil"},
        },
        run__py=code,
    )
    yield folder("distributed, of nothing", __metadata_=whole(b"}"))
    yield folder(
        "distributed, huge",
        __metadata_=whole(
            b"}("
            + pickles.text("state_dict_metadata")
            + b"}"
            + pickles.text("a")
            + b"}"
            + pickles.text("size")
            + b"L1000000000000L\n\x85ss"
            + pickles.text("storage_data")
            + b"}"
            + b"csomewhere\nIndex\n)R}"
            + pickles.text("fqn")
            + pickles.text("a")
            + b"sb"
            + b"}"
            + pickles.text("relative_path")
            + pickles.text("/etc/passwd")
            + b"s"
            + b"su"
        ),
    )
    yield folder("a configuration that never ends", config__json=class_of, **state)


def file_system(kind, name):
    """What is no file, or none that anybody could read."""

    def case(title, make):
        def write(folder):
            path = folder / name
            make(path)
            return path

        return Case(kind, f"{name} is {title}", write)

    def bound(path):
        with closing(socket.socket(socket.AF_UNIX)) as made:
            before = Path.cwd()
            os.chdir(path.parent)  # its own path may be too long for a socket's
            made.bind(path.name)
            os.chdir(before)

    def sparse(start):
        def make(path):
            path.write_bytes(start)
            os.truncate(path, 2**36)

        return make

    def round_about(path):
        path.symlink_to(path.name + "2")
        (path.parent / (path.name + "2")).symlink_to(path.name)

    yield case("empty", lambda path: path.touch())
    yield case("missing", lambda path: None)
    yield case("a folder", lambda path: path.mkdir())
    yield case("a pipe", os.mkfifo)
    yield case("a socket", bound)
    yield case("a link to a pipe", lambda path: (os.mkfifo(f"{path}2"), path.symlink_to(f"{path}2")))
    yield case("a link to nothing", lambda path: path.symlink_to("nothing"))
    yield case("a link to itself", round_about)
    yield case("a link to a device without an end", lambda path: path.symlink_to("/dev/zero"))
    yield case("a link to the null device", lambda path: path.symlink_to("/dev/null"))
    yield case("a link to the root", lambda path: path.symlink_to("/proc/self/mem"))
    yield case("64 GiB of nothing", sparse(b""))
    yield case("64 GiB after a zip's start", sparse(b"PK\x03\x04"))
    yield case("64 GiB after a pickle's start", sparse(b"\x80\x02}"))
    yield case("64 GiB after the older format's start", sparse(older(whole(b"N"))[:40]))
    yield case("64 GiB of safetensors", sparse(struct.pack("<Q", 90_000_000) + b"{"))
    yield Case(kind, "a name with line ends", lambda folder: folder / "a\n\x1b[31mb.pt")
    yield Case(kind, "a name without an end", lambda folder: folder / ("a" * 5000))
    yield Case(
        kind, "a name of no text", lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.pt"))
    )


def chunk(kind, content):
    """Of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, rows, depth=8, colour=0, more=b""):
    """With so many bytes of rows, packed."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    packed = zlib.compress(bytes(rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def text_bomb():
    """128 MiB of nothing, under a name."""
    return b"a\0\0" + zlib.compress(bytes(2**27), 9)


def images():
    """Folders of images, one of which is hostile: it is left out, or the data is refused."""

    def inside(folder, name, content):
        saved.image_folder(folder)
        (folder / "a" / name).write_bytes(content)
        return folder

    def with_image(title, name, content, kind="data"):
        def write(folder):
            return inside(folder, name, content() if callable(content) else content)

        return Case(kind, f"image: {title}", write)

    yield from files("data", saved.PICTURES, lambda name: saved.picture(**saved.PICTURES[name]), inside)
    for title, name, content in (
        ("a bomb of 100,000 pixels a side", "x.png", png(100_000, 100_000, 1000)),
        ("a bomb just below the limit", "x.png", png(9_400, 9_400, 100)),
        ("a bomb that unpacks", "x.png", lambda: png(9_400, 9_400, 9_401 * 9_400)),
        ("more bytes than pixels", "x.png", lambda: png(8, 8, 2**28)),
        ("2^31 pixels a side", "x.png", png(2**31 - 1, 2**31 - 1, 10)),
        ("no pixels", "x.png", png(0, 0, 10)),
        ("100,000 pixels, one high", "x.png", png(100_000, 1, 100_001)),
        ("100,000 pixels, one wide", "x.png", png(1, 100_000, 200_000)),
        ("text that unpacks", "x.png", lambda: png(8, 8, 72, more=chunk(b"zTXt", text_bomb()))),
        ("a colour profile that unpacks", "x.png", lambda: png(8, 8, 72, more=chunk(b"iCCP", text_bomb()))),
        ("64 bits a pixel", "x.png", png(8, 8, 8 * 65, 16, 6)),
        ("a palette without colours", "x.png", png(8, 8, 72, 8, 3)),
        ("a chunk of 2^31 bytes", "x.png", png(8, 8, 72)[:33] + b"\x7f\xff\xff\xffeXIf" + bytes(100)),
        (
            "a GIF of 65,535 pixels a side",
            "x.gif",
            b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;",
        ),
        ("a GIF of a thousand frames", "x.gif", lambda: frames(1000)),
        (
            "a JPEG of 65,535 pixels a side",
            "x.jpg",
            saved.picture(kind="JPEG").replace(b"\x00\x18\x00\x18", b"\xff\xff\xff\xff", 1),
        ),
        ("a JPEG that ends at once", "x.jpg", b"\xff\xd8\xff\xd9"),
        ("a TIFF that goes round", "x.tif", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
        (
            "a TIFF of two million strips",
            "x.tif",
            b"II*\0\x08\0\0\0\x01\0\x11\x01\x04\0\xff\xff\xff\x7f\x08\0\0\0",
        ),
        (
            "a BMP of 2^31 pixels a side",
            "x.bmp",
            b"BM"
            + bytes(8)
            + struct.pack("<III", 54, 40, 2**31 - 1)
            + struct.pack("<IHH", 2**31 - 1, 1, 24)
            + bytes(24),
        ),
        ("a PPM of 100,000 pixels a side", "x.ppm", b"P6 100000 100000 255 " + bytes(100)),
        ("a PPM of a number without an end", "x.ppm", b"P6 " + b"9" * 100_000),
        (
            "a WebP of 16,384 pixels a side",
            "x.webp",
            b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f\xff\xff\xff\x0f\0\0\0\0\0",
        ),
        (
            "PostScript",
            "x.png",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n(canary) (w) file\n%%EOF",
        ),
        ("PDF", "x.png", b"%PDF-1.4\n"),
        ("HTML", "x.png", b"<html><script>"),
        ("empty", "x.png", b""),
        ("a pickle", "x.png", whole(called(CALLS["os system"]))),
        (
            "EXIF that goes round",
            "x.jpg",
            exif(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"),
        ),
        ("EXIF of nothing", "x.jpg", exif(b"Exif\0\0")),
        (
            "EXIF turned by text",
            "x.jpg",
            exif(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"),
        ),
    ):
        yield with_image(title, name, content)
        yield with_image(f"{title}, without classes", name, content, "unlabelled")


def in_folder_of_images():
    """What may lie among images."""

    def among(title, make):
        def write(folder):
            saved.image_folder(folder)
            make(folder / "a" / "x.png")
            return folder

        return Case("data", f"image folder with {title}", write)

    yield among("a pipe", os.mkfifo)
    yield among("a link to a device without an end", lambda path: path.symlink_to("/dev/zero"))
    yield among("a link to its own folder", lambda path: path.symlink_to(".."))
    yield among("a folder that is called as an image", lambda path: path.mkdir())
    yield among("a file outside", lambda path: path.symlink_to("/etc/passwd"))
    yield among("a name with line ends", lambda path: path.with_name("a\n\x1b[31m.png").write_bytes(b""))
    yield among("64 GiB of nothing", lambda path: (path.touch(), os.truncate(path, 2**36)))
    yield among(
        "a name of no text",
        lambda path: Path(os.fsdecode(os.fsencode(path.parent) + b"/\xff\xfe.png")).write_bytes(b"x"),
    )


def frames(count):
    """A GIF that moves."""
    from PIL import Image

    file = io.BytesIO()
    first, *others = (Image.new("L", (8, 8), number % 256) for number in range(count))
    first.save(file, "GIF", save_all=True, append_images=others)
    return file.getvalue()


def exif(content):
    """A JPEG with it."""
    plain = saved.picture(kind="JPEG")
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + plain[2:]


def data():
    """Arrays, tables and lists of images."""
    yield from files("data", ["data.npz"], lambda _: saved.arrays())
    yield from files("data", ["train.parquet"], lambda _: saved.table())

    def array(header, body=b""):
        text = header.encode() + b"\n"
        return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + body

    def archive(images, labels=None, **how):
        labels = (
            array("{'descr': '<i8', 'fortran_order': False, 'shape': (4,), }", bytes(32))
            if labels is None
            else labels
        )
        file = io.BytesIO()
        import zipfile

        with zipfile.ZipFile(file, "w", **how) as made:
            made.writestr("images.npy", images)
            made.writestr("labels.npy", labels)
        return file.getvalue()

    def shaped(shape, descr="|u1"):
        return array(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}", bytes(64))

    def written(**arrays):
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return file.getvalue()

    objects = np.array([{"a": 1}] * 4, dtype=object)
    for name, content in {
        "objects": lambda: written(images=objects, labels=objects),
        "a bomb": lambda: written(
            images=np.zeros((2**21, 16, 16), np.uint8), labels=np.zeros(2**21, np.int64)
        ),
        "a huge shape": archive(shaped("(4, 1000000, 1000000)")),
        "a shape of 2^40": archive(shaped(f"({2**40},)")),
        "a shape that overflows": archive(shaped(f"({2**33}, {2**33})")),
        "a shape of 2^70": archive(shaped(f"({2**70},)")),
        "a negative shape": archive(shaped("(-4, 2, 2)")),
        "a shape of code": archive(shaped("__import__('os').system('touch canary-of-the-corpus')")),
        "a huge element": archive(shaped("(4,)", "|S2000000000")),
        "an object's type": archive(shaped("(4,)", "|O")),
        "a type of code": archive(
            array(
                "{'descr': __import__('os').system('touch canary-of-the-corpus'), "
                "'fortran_order': False, 'shape': (4,)}"
            )
        ),
        "a header of nested lists": archive(array("[" * 9000)),
        "a header without an end": archive(b"\x93NUMPY\x02\0\xff\xff\xff\x7f" + b"{" * 50),
        "a pickle": archive(whole(called(CALLS["os system"]))),
        "not a number": lambda: written(images=np.full((4, 8, 8), np.nan), labels=np.arange(4) % 2),
        "infinite labels": lambda: written(images=np.zeros((4, 8, 8)), labels=np.full(4, np.inf)),
        "labels of 2^62": lambda: written(images=np.zeros((4, 8, 8)), labels=np.array([0, 1, 2**62, 2**62])),
        "labels of 2^64": lambda: written(
            images=np.zeros((4, 8, 8)), labels=np.array([0, 1, 2**64 - 1, 1], np.uint64)
        ),
        "names that are objects": lambda: written(
            images=np.zeros((4, 8, 8)), labels=np.arange(4) % 2, class_names=objects
        ),
        "names with line ends": lambda: written(
            images=np.zeros((4, 8, 8)), labels=np.arange(4) % 2, class_names=np.array(["a\n\x1b[31m", "b"])
        ),
        "images of no size": lambda: written(images=np.zeros((4, 0, 8)), labels=np.arange(4) % 2),
        "a hundred axes": archive(shaped("(" + "1, " * 100 + ")")),
    }.items():
        yield holding("data", f"arrays: {name}", "data.npz", content)

    def listed(title, file, content):
        def write(folder):
            for number in range(8):
                (folder / f"{number}.png").write_bytes(saved.picture(seed=number))
            (folder / file).write_bytes(content)
            return folder

        return Case("data", f"list: {title}", write)

    yield listed(
        "outside of its folder", "metadata.csv", b"file_name,label\n../../../../etc/passwd,a\n/etc/passwd,b\n"
    )
    yield listed("no text", "metadata.csv", b"\xff\xfe\0\0file_name")
    yield listed("a cell of a megabyte", "metadata.csv", b"file_name,label\n" + b"a" * 10**6 + b",a\n")
    yield listed("null bytes", "metadata.csv", b"file_name,label\na\0b,a\n")
    yield listed("nested JSON", "metadata.jsonl", b"[" * 50_000 + b"\n")
    yield listed("JSON of numbers", "metadata.jsonl", b"1\n2\n")
    yield listed("a huge number", "metadata.jsonl", b'{"file_name": 1e999, "label": ' + b"9" * 5000 + b"}\n")
    yield listed("state of a dataset, nested", "state.json", b"[" * 50_000)
    yield listed(
        "state of a dataset, outside", "state.json", b'{"_data_files": [{"filename": "../../../etc/passwd"}]}'
    )
    yield holding("data", "a dataset's tables are text", "data/train.parquet", b"PAR1" + bytes(100) + b"PAR1")
    yield holding(
        "data",
        "an Arrow file of nothing",
        "data/train.arrow",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(20),
    )


NESTED = {"nested lists": b"[" * 100_000, "nested objects": b'{"a":' * 100_000, "not a number": b'{"a": NaN}'}
TEXTS = NESTED | {
    "empty": b"",
    "no text": b"\xff\xfe\xfd",
    "null bytes": bytes(100),
    "a number": b"1" * 100_000,
    "null": b"null",
    "a list": b"[]",
    "text": b'"text"',
}


def answers():
    """Stored answers and baselines, as the package itself writes them but for a part."""
    for kind, file, real in (
        ("answer", "advice.json", saved.answer),
        ("baseline", "baseline.json", saved.baseline),
    ):
        yield from files(kind, [file], lambda _, real=real: real().encode())
        for name, content in TEXTS.items():
            yield holding(kind, f"{file}: {name}", file, content)
        for name, change in CHANGES.items():
            content = partial(replaced, real, *change)
            yield holding(kind, f"{file}: {name}", file, content)
        yield from file_system(kind, file)


NEVER = object()
VALUES = (None, -1, 2**70, 1e308, "\x1b[31m\n", "9" * 1000, [], {}, [[[[]]]], True, {"a": None}, *[NEVER] * 6)
# What is wrong with a document: one value, each time another one.
CHANGES = {
    f"value {seed} is {'missing' if value is NEVER else repr(value)[:20]}": (seed, value)
    for seed, value in enumerate(VALUES)
}


def replaced(real, seed, value):
    """The document with one of its values replaced by what it can't be, or left out."""
    document = json.loads(real())
    place = random.Random(seed).choice(list(walk(document)))
    return json.dumps(changed(document, place, *([] if value is NEVER else [value]))).encode()


def walk(value, place=()):
    """Where each value is."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in pairs:
        yield (*place, key)
        yield from walk(each, (*place, key))


def changed(value, place, *other):
    """A copy with another value at the place, or without any."""
    value = json.loads(json.dumps(value))
    at = value
    for key in place[:-1]:
        at = at[key]
    if other:
        at[place[-1]] = other[0]
    else:
        del at[place[-1]]
    return value


def stores():
    """Databases that are damaged, or made by somebody else."""
    yield from files("store", ["store.sqlite"], lambda _: saved.store(), with_lock)
    yield from files("store", ["alone.sqlite"], lambda _: saved.store())
    yield from file_system("store", "store.sqlite")

    def made(title, *statements):
        def write(folder):
            path = with_lock(folder, "store.sqlite", saved.store())
            with closing(sqlite3.connect(path, isolation_level=None)) as database:
                for each in statements:
                    database.execute(each)
            return path

        return Case("store", f"store: {title}", write)

    insert = "INSERT INTO results SELECT id, kind, {}, {}, created, digest FROM results LIMIT 1"
    yield made(
        "a view in place of the table",
        "DROP TABLE results",
        "CREATE VIEW results AS SELECT 1 AS id, 2 AS kind, 3 AS key, 4 AS value, 5 AS created, 6 AS digest",
    )
    yield made(
        "a view without an end",
        "DROP TABLE results",
        "CREATE VIEW results AS WITH RECURSIVE n(id, kind, key, value, created, digest) "
        "AS (SELECT 1,2,3,4,5,6 UNION ALL SELECT id+1,2,3,4,5,6 FROM n) SELECT * FROM n",
    )
    yield made(
        "a trigger without an end",
        "CREATE TABLE more (a)",
        "CREATE TRIGGER t AFTER INSERT ON results BEGIN INSERT INTO more "
        "WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a+1 FROM n) SELECT a FROM n; END",
    )
    yield made("other columns", "DROP TABLE results", "CREATE TABLE results (a)")
    yield made("no table", "DROP TABLE results")
    yield made("another version", "PRAGMA user_version = 99")
    yield made("another program's", "PRAGMA application_id = 1")
    yield made("values of other types", "UPDATE results SET value = x'00ff', created = 'never'")
    yield made("values without an end", "UPDATE results SET value = zeroblob(300000000) WHERE rowid = 1")
    yield made("nested values", f"UPDATE results SET value = '{'[' * 50_000}'")
    yield made("an attached file", insert.format("key", "value").replace("id,", "'x' || id,"))


def with_lock(folder, name, content):
    """As a store lies that was used before."""
    path = folder / name
    path.write_bytes(content)
    sqlite3.connect(f"{path}.lock").close()
    return path


def adapters():
    """Folders that apply wrote, but for a part."""

    def write(recipe, tensors, home):
        (home / "recipe.json").write_bytes(recipe())
        (home / "adapter.safetensors").write_bytes(tensors())
        return home

    def folder(title, recipe=lambda: saved.adapter()[0], tensors=lambda: saved.adapter()[1]):
        return Case("adapter", f"adapter: {title}", partial(write, recipe, tensors))

    def edited(changes):
        document = json.loads(saved.adapter()[0]) | {"adapter_sha256": ""}
        levers = document["levers"] | changes.get("levers", {})
        return json.dumps(document | changes | {"levers": levers}).encode()

    for name, content in TEXTS.items():
        yield folder(f"recipe is {name}", lambda content=content: content)
    for name, change in CHANGES.items():
        yield folder(f"recipe's {name}", partial(replaced, lambda: saved.adapter()[0], *change))
    for case in files("adapter", ["adapter.safetensors"], lambda _: saved.adapter()[1], write_only):
        yield Case("adapter", case.name, lambda home, case=case: with_recipe(case.write(home), edited({})))
    for name, changes in {
        "a huge head": {"classes": 10**10, "base_classes": 2},
        "a large head": {"classes": 10**9, "base_classes": 2, "head_replaced": True},
        "a huge input": {"input_size": [3, 10**6, 10**6]},
        "a negative input": {"input_size": [-3, 16, 16]},
        "a huge rank": {"method": "lora", "setting": {"rank": 10**9}},
        "a method of code": {"method": "os.system"},
        "a rank of text": {"method": "lora", "setting": {"rank": "__import__('os')"}},
        "levers of text": {"levers": {"scope": "a", "micro_batch": "b"}},
        "a scope of -5": {"levers": {"scope": -5}},
    }.items():
        yield folder(name, partial(edited, changes))

    def link(home, name, target):
        folder("plain").write(home)
        (home / name).unlink()
        (os.mkfifo(home / name) if target is None else (home / name).symlink_to(target))
        return home

    for name in ("recipe.json", "adapter.safetensors"):
        yield Case("adapter", f"{name} is a pipe", lambda home, name=name: link(home, name, None))
        yield Case("adapter", f"{name} is a device", lambda home, name=name: link(home, name, "/dev/zero"))
        yield Case("adapter", f"{name} is a folder", lambda home, name=name: link(home, name, "/etc"))


def write_only(folder, name, content):
    """The file in its folder, which is what is opened."""
    (folder / name).write_bytes(content)
    return folder


def with_recipe(folder, recipe):
    """The folder with a recipe in it."""
    (folder / "recipe.json").write_bytes(recipe)
    return folder


def configurations():
    """pyproject.toml, as it lies in a repository that somebody else made."""
    tables = {
        "nested lists": b"a = " + b"[" * 50_000,
        "nested tables": b"[" + b"a." * 20_000 + b"a]",
        "no text": b"\xff\xfe",
        "no table": b"tool = 3\n# peft-advisor",
        "a list for a table": b"[tool]\npeft-advisor = [1]",
        "models of numbers": b"[tool.peft-advisor]\nmodels = 3",
        "a huge size": b'[tool.peft-advisor]\nmodel = "a.pt"\nram = "1e400GB"\n'
        b'input-size = "3x999999999x999999999"',
        "numbers for text": b"[tool.peft-advisor]\nmodel = 3\nram = 1979-05-27\nflops-budget = nan",
        "line ends": b'[tool.peft-advisor]\nmodel = "a\\n\\u001b[31mb"',
        "null bytes": b'[tool.peft-advisor]\nmodel = "a\\u0000b"\nbaseline = "\\u0000"',
        "a baseline outside": b'[tool.peft-advisor]\nmodel = "a.pt"\nbaseline = "/dev/zero"',
    }
    for name, content in tables.items():
        yield holding("configuration", f"pyproject.toml: {name}", "pyproject.toml", content)
    yield from file_system("configuration", "pyproject.toml")


def commands():
    """Through the whole command line: what a user sees of it."""

    def of(case, *words):
        def write(folder):
            return case.write(folder)

        return Case("command", f"{' '.join(words)} {case.name}", write, words)

    attack = holding("model", "an attack", "model.pt", zipped(whole(called(CALLS["os system"]))))
    hidden = holding("model", "an attack of no known name", "model.pt", zipped(whole(called(CALLS["bdb"]))))
    deep = holding("model", "a deep module", "model.pt", pickles.modules()["three thousand deep"])
    yield of(attack, "profile")
    yield of(attack, "recommend")
    yield of(hidden, "profile")
    yield of(deep, "profile")
    for title in ("forward is a class", "it is its own layer", "without layers", "a hook that is a class"):
        yield of(
            holding("model", title, "model.pt", pickles.modules()[title]), "profile", "--input-size", "3x8x8"
        )
    for case in [*in_folder_of_images()][-3:]:
        yield of(case, "data")
    for case in [*data()][-3:]:
        yield of(case, "data")
    for name in ("nested lists", "empty", "no text", "a list"):
        yield of(holding("answer", name, "advice.json", TEXTS[name]), "report")
        yield of(holding("answer", name, "advice.json", TEXTS[name]), "apply", str(Path("model.pt")))
    for case in file_system("answer", "advice.json"):
        yield of(case, "report")
    for case in [*file_system("store", "store.sqlite")][:8]:
        yield of(case, "store", "show", "--store")
