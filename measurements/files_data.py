"""Study: what becomes of folders and arrays of images as people have them.

    python -m measurements.files_data   # half a minute

Each is written as people, their cameras and services leave them, and read with the function that every
command uses. What is valid must give the very images, classes and parts that it was written from, as a person
sees them; what can't be used must be refused for the right reason; what would mislead must be told. Writes
results/files_data.json and the table in README.md.
"""

from __future__ import annotations

import io
import json
import shutil
import statistics
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from advisor.data.balance import balance
from advisor.data.loading import load_data
from advisor.data.sources import find
from advisor.errors import DataError
from measurements.tables import README, table, write_tables

RESULTS = Path(__file__).parent / "results" / "files_data.json"
SIDE, EACH = 16, 12  # pixels; images of a class
NAMES = ("ball", "cube")
CLOSE = 12  # of 255, on average over an image: what a JPEG may lose


@dataclass(frozen=True)
class Case:
    """A source, and what must become of it."""

    group: str
    name: str
    write: Callable[[Path], Any]  # into an empty folder; gives the source, where it isn't that folder
    classes: tuple[str, ...] = NAMES
    held_out: bool = False  # it comes with a split of its own
    images: int | None = 2 * EACH  # as a person sees them, of `scene`; None: others
    refused: str = ""  # words of the right reason
    says: str = ""  # words that must be told
    labels: str | None = None  # as typed, relative to the folder
    groups: str | None = None  # likewise, or a pattern


def scene(label: int, number: int) -> np.ndarray:
    """A picture that is like no other, bright above for one class and below for the other: (H, W, 3)."""
    coarse = np.random.default_rng(1000 * label + number).integers(0, 120, (4, 4, 3), dtype=np.uint8)
    pixels = coarse.repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)
    pixels[: SIDE // 2] += np.uint8(130 * (label % 2))
    pixels[SIDE // 2 :] += np.uint8(130 * (1 - label % 2))
    return pixels


def draw(
    root: Path,
    *,
    names: tuple[str, ...] = NAMES,
    first: int = 0,
    count: int = EACH,
    suffix: str = ".png",
    change: Callable[[Image.Image], Image.Image] = lambda image: image,
    **options: Any,
) -> None:
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            image = change(Image.fromarray(scene(label, number)))
            image.save(root / name / f"{number:03}{suffix}", **options)


def parts(root: Path, train: str, held_out: str) -> None:
    draw(root / train, count=8)
    draw(root / held_out, first=8, count=EACH - 8)


def flat(root: Path) -> list[tuple[str, int]]:
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(EACH):
        for label in range(2):
            name = f"{number:03}_{label}.png"
            Image.fromarray(scene(label, number)).save(root / name)
            rows.append((name, label))
    return rows


def listed(root: Path, text: str, row: str, name: str, folder: str = "") -> None:
    rows = [row.format(name=file, label=NAMES[label], number=label) for file, label in flat(root / folder)]
    (root / name).write_text("\n".join([*([text] if text else []), *rows]))


def turned(root: Path, orientation: int) -> None:
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw(
        root,
        suffix=".jpg",
        quality=95,
        subsampling=0,
        exif=exif,
        change=lambda image: image.transpose(turn[orientation]),
    )


def after(*steps: object) -> None:
    """Where a case is written in several steps: nothing, as its source is the folder itself."""


def arrays(root: Path, **given: Any) -> Path:
    np.savez(root / "data.npz", **given)
    return root / "data.npz"


def whole() -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([0, 1], EACH)
    return np.stack([scene(label, number % EACH) for number, label in enumerate(labels)]), labels


def split_arrays(root: Path, images: str, labels: str) -> Path:
    x, y = whole()
    held = np.arange(len(y)) % 3 == 0
    given = {images.format("train"): x[~held], labels.format("train"): y[~held]}
    return arrays(root, **given, **{images.format("test"): x[held], labels.format("test"): y[held]})


def with_junk(root: Path) -> None:
    draw(root)
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
        draw(root / name, count=2)
        draw(root / NAMES[0] / name, names=("x",), count=2)
    (root / NAMES[0] / "._000.png").write_bytes(b"junk")
    (root / NAMES[1] / "Thumbs.db").write_bytes(b"junk")


def two_forms(root: Path) -> None:
    for part, form, first, count in (("train", "NFC", 0, 8), ("val", "NFD", 8, 4)):
        name = unicodedata.normalize(form, "caf\u00e9")
        draw(root / part, names=(name, "tea"), first=first, count=count)


def clear(image: Image.Image) -> Image.Image:
    """What it shows is in its alpha channel, over black; on paper it is dark on white."""
    grey = image.convert("L")
    black = Image.new("L", grey.size)
    return Image.merge("LA", (black, Image.eval(grey, lambda value: 255 - value)))


def frames(root: Path) -> None:
    for number in range(12):
        for frame in range(6):
            noise = np.random.default_rng(frame).normal(0, 3, (SIDE, SIDE, 3))
            pixels = (scene(number % 2, number) + noise).clip(0, 255).astype(np.uint8)
            path = root / NAMES[number % 2] / f"video{number:02}_frame{frame:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def copied(root: Path) -> None:
    draw(root / "train")
    shutil.copytree(root / "train", root / "val")


def in_two_classes(root: Path) -> None:
    draw(root)
    shutil.copy(root / NAMES[0] / "000.png", root / NAMES[1] / "also.png")


def detection(root: Path) -> None:
    for part in ("train", "valid"):
        flat(root / part / "images")
        (root / part / "labels").mkdir()


def cases() -> list[Case]:
    x, y = whole()
    pairs = [("training", "testing"), ("Training", "Testing"), ("train", "eval"), ("seg_train", "seg_test")]
    pairs += [("training_set", "test_set"), ("train", "dev"), ("train", "valid"), ("train2017", "val2017")]
    found = [
        Case("parts", f"{train}/ and {held}/", partial(parts, train=train, held_out=held), held_out=True)
        for train, held in pairs
    ]
    found += [
        Case(
            "parts",
            "train/ and a flat test/",
            lambda r: after(draw(r / "train"), flat(r / "test")),
            says="held out instead",
        ),
        Case(
            "parts",
            "train/ beside others",
            lambda r: after(draw(r / "train"), flat(r / "more")),
            refused="no val/ or test/",
        ),
        Case("parts", "val/ and test/ alone", lambda r: parts(r, "val", "test"), refused="no train/"),
        Case(
            "parts",
            "flat train/ and test/",
            lambda r: after(flat(r / "train"), flat(r / "test")),
            refused="look like parts of a split",
        ),
        Case("folders", "plain", draw),
        Case("folders", "in an archive's folder", lambda r: draw(r / "archive" / "images"), says="archive"),
        Case("folders", "what systems leave behind", with_junk),
        Case("folders", "two Unicode forms", two_forms, classes=("caf\u00e9", "tea"), held_out=True),
        Case(
            "folders",
            "in folders",
            lambda r: after(draw(r / "x", names=("a", "b")), draw(r / "y", names=("c", "d"))),
            classes=("x", "y"),
            images=None,
            says="--labels leaf",
        ),
        Case(
            "folders",
            "in folders, the lowest",
            lambda r: after(draw(r / "x"), draw(r / "y", names=("c", "d"))),
            classes=("ball", "c", "cube", "d"),
            images=None,
            labels="leaf",
        ),
        Case("folders", "for detection", detection, refused="detection or segmentation"),
        Case("folders", "flat", lambda r: after(flat(r)), refused="no class folders"),
        Case(
            "tables",
            "Hugging Face's metadata.csv",
            partial(listed, text="file_name,label", row="{name},{label}", name="metadata.csv"),
        ),
        Case(
            "tables",
            "labels.csv beside images/",
            partial(listed, text="name,label", row="{name},{label}", name="labels.csv", folder="images"),
        ),
        Case(
            "tables",
            "its metadata.jsonl in train/",
            lambda r: after(
                listed(r / "train", "", '{{"file_name": "{name}", "label": "{label}"}}', "metadata.jsonl"),
                (r / "test").mkdir(),
            ),
        ),
        Case(
            "tables",
            "Roboflow's _classes.csv",
            lambda r: after(
                listed(r / "train", "filename, ball, cube", "{name}, 1, 0", "_classes.csv"), flat(r / "valid")
            ),
            refused="only one class",
        ),
        Case(
            "tables",
            "labels.csv",
            partial(listed, text="file,label", row="{name},{label}", name="labels.csv", folder="images"),
            labels="labels.csv",
        ),
        Case(
            "tables",
            "without a header, blanks between",
            partial(listed, text="", row="{name} {label}", name="list.txt", folder="images"),
            labels="list.txt",
        ),
        Case(
            "tables",
            "semicolons, other columns",
            partial(listed, text="id;image;breed;width", row="7;{name};{label};16", name="t.csv", folder="i"),
            labels="t.csv",
        ),
        Case(
            "tables",
            "of other images",
            lambda r: after(flat(r), (r / "l.csv").write_text("file,label\nx.png,1")),
            labels="l.csv",
            refused="name an image",
        ),
        *(
            Case("images", f"EXIF orientation {turn}", partial(turned, orientation=turn), says="turned")
            for turn in (3, 6, 8)
        ),
        Case("images", "transparent", partial(draw, change=clear), images=None, says="over white"),
        Case("images", ".jfif", partial(draw, suffix=".jfif", format="JPEG", quality=95)),
        Case("images", ".JPG", partial(draw, suffix=".JPG", quality=95)),
        Case("images", ".webp", partial(draw, suffix=".webp", lossless=True)),
        Case("images", ".tif", partial(draw, suffix=".tif")),
        Case("images", ".bmp", partial(draw, suffix=".bmp")),
        Case("images", "CMYK", partial(draw, suffix=".tif", change=lambda i: i.convert("CMYK"))),
        Case(
            "images",
            "animated",
            partial(draw, suffix=".gif", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))]),
            images=None,
            says="first frame",
        ),
        Case(
            "images",
            "videos beside them",
            lambda r: after(draw(r), (r / NAMES[0] / "x.mp4").touch()),
            says="1 .mp4",
        ),
        Case("arrays", "plain", lambda r: arrays(r, images=x, labels=y), classes=("0", "1")),
        Case(
            "arrays",
            "channels first, 0 to 1",
            lambda r: arrays(r, images=x.transpose(0, 3, 1, 2) / 255, labels=y[:, None]),
            classes=("0", "1"),
        ),
        Case(
            "arrays",
            "-1 to 1, one-hot",
            lambda r: arrays(r, images=x / 127.5 - 1, labels=np.eye(2)[y]),
            classes=("0", "1"),
            says="-1 to 1",
        ),
        Case(
            "arrays",
            "0 to 255, named",
            lambda r: arrays(r, x=x.astype(float), y=np.array(NAMES)[y]),
            says="0 to 255",
        ),
        Case(
            "arrays",
            "Keras's names",
            partial(split_arrays, images="x_{}", labels="y_{}"),
            classes=("0", "1"),
            held_out=True,
        ),
        Case(
            "arrays",
            "MedMNIST's names",
            partial(split_arrays, images="{}_images", labels="{}_labels"),
            classes=("0", "1"),
            held_out=True,
        ),
        Case(
            "arrays",
            "bytes that are 0 and 1",
            lambda r: arrays(r, images=x // 128, labels=y),
            refused="every pixel is 0 or 1",
        ),
        Case("arrays", "divided twice", lambda r: arrays(r, images=x / 255 / 255, labels=y), refused="twice"),
        Case(
            "arrays", "normalised", lambda r: arrays(r, images=x / 50 - 2, labels=y), refused="normalisation"
        ),
        Case("arrays", "a label of -1", lambda r: arrays(r, images=x, labels=y - 1), refused="negative"),
        Case(
            "arrays",
            "labels from 1",
            lambda r: arrays(r, images=x, labels=y + 1),
            classes=("1", "2"),
            says="labels begin at 1",
        ),
        Case("leaks", "frames of videos", frames, images=None, says="held out as a whole"),
        Case(
            "leaks", "val/ is a copy of train/", copied, held_out=True, images=None, says="learned by heart"
        ),
        Case("leaks", "an image in two classes", in_two_classes, images=None, says="lie in two classes"),
        Case(
            "balance",
            "570 to 30",
            lambda r: after(draw(r, names=("a",), count=570), draw(r, names=("a", "b"), count=30)),
            classes=("a", "b"),
            images=None,
            says="finds nothing else",
        ),
    ]
    return [*found, *of_objects(), *of_hugging_face(), *of_groups()]


_CODE = """
import numpy as np, torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import datasets, transforms

stored = np.load({path!r})
images, labels = stored["images"], stored["labels"]

class Photos(Dataset):
    classes = ["ball", "cube"]

    def __init__(self, places=range(len(labels))):
        self.places = list(places)

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        place = self.places[index]
        return torch.from_numpy(images[place]).permute(2, 0, 1) / 255, int(labels[place])
"""
_COUNT = iter(range(1000))  # a module's name is taken once


def of_objects() -> list[Case]:
    """Datasets of the user's own code."""

    def code(root: Path, more: str, name: str) -> str:
        path = root / f"photos_{next(_COUNT)}.py"
        x, y = whole()
        np.savez(root / "stored.npz", images=x, labels=y)
        path.write_text(_CODE.format(path=str(root / "stored.npz")) + more)
        return f"{path}:{name}"

    halves = "def build():\n    return {'train': Photos(range(0, 24, 2)), 'test': Photos(range(1, 24, 2))}"
    return [
        Case("objects", "a class", partial(code, more="", name="Photos")),
        Case("objects", "a dict of parts", partial(code, more=halves, name="build"), held_out=True),
        Case(
            "objects",
            "a subset, of a loader",
            partial(
                code,
                more="made = DataLoader(Subset(Photos(), list(range(24))[::-1]), shuffle=True)",
                name="made",
            ),
        ),
        Case(
            "objects",
            "arrays and texts",
            partial(
                code, more="made = [(x, ['ball', 'cube'][y]) for x, y in zip(images, labels)]", name="made"
            ),
        ),
        Case(
            "objects",
            "dicts of images and one-hot classes",
            partial(
                code,
                more="made = [{'image': x / 255, 'label': np.eye(2)[y]} for x, y in zip(images, labels)]",
                name="made",
            ),
            classes=("0", "1"),
        ),
        Case(
            "objects",
            "normalised",
            partial(code, more="made = [(x / 50 - 2, y) for x, y in zip(images, labels)]", name="made"),
            refused="leave it out of the transform",
        ),
        Case(
            "objects",
            "random each time",
            partial(
                code,
                more="class Noisy(Photos):\n    def __getitem__(self, i):\n        "
                "x, y = super().__getitem__(i)\n        return x * torch.rand(()), y",
                name="Noisy",
            ),
            images=None,
            says="another image each time",
        ),
        Case(
            "objects",
            "a function that needs more",
            partial(code, more="def build(root): ...", name="build"),
            refused="calling it needs root",
        ),
    ]


def of_hugging_face() -> list[Case]:
    """Tables as `datasets` and the hub keep them, written with pyarrow in their form."""
    import pyarrow
    from pyarrow import parquet

    def rows(places: range, told: bool = True) -> pyarrow.Table:
        x, y = whole()
        contents = []
        for place in places:
            file = io.BytesIO()
            Image.fromarray(x[place]).save(file, "PNG")
            contents.append({"bytes": file.getvalue(), "path": f"{place}.png"})
        label = {"names": list(NAMES), "_type": "ClassLabel"}
        features = {"image": {"_type": "Image"}, "label": label} if told else {}
        classes = y[list(places)] if told else np.array(NAMES)[y[list(places)]]
        table = pyarrow.table({"image": contents, "label": classes})
        return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})

    def saved(folder: Path, *tables: pyarrow.Table) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, part in enumerate(tables):
            with pyarrow.ipc.new_stream(str(folder / f"{number}.arrow"), part.schema) as out:
                out.write_table(part)
        files = [{"filename": f"{number}.arrow"} for number in range(len(tables))]
        (folder / "state.json").write_text(json.dumps({"_data_files": files}))

    def in_parts(root: Path) -> str:
        saved(root / "train", rows(range(0, 24, 2)))
        saved(root / "validation", rows(range(1, 24, 2)))
        (root / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
        return f"hf:{root}"

    def of_hub(root: Path) -> str:
        (root / "data").mkdir()
        parquet.write_table(rows(range(0, 24, 2)), root / "data" / "train-00000-of-00001.parquet")
        parquet.write_table(rows(range(1, 24, 2)), root / "data" / "test-00000-of-00001.parquet")
        return f"hf:{root}"

    every_row = range(2 * EACH)
    halves = every_row[:9], every_row[9:]
    text = pyarrow.table({"text": ["x", "y"], "label": [0, 1]})
    return [
        Case(
            "Hugging Face",
            "save_to_disk, two files",
            lambda r: saved(r, *map(rows, halves)),
        ),
        Case("Hugging Face", "save_to_disk, parts", in_parts, held_out=True),
        Case("Hugging Face", "texts for classes", lambda r: saved(r, rows(every_row, told=False))),
        Case("Hugging Face", "the hub's Parquet", of_hub, held_out=True),
        Case("Hugging Face", "imagefolder", lambda r: (draw(r), f"hf:{r}")[1]),
        Case("Hugging Face", "of texts", lambda r: saved(r, text), refused="holds image files"),
    ]


def of_groups() -> list[Case]:
    """What `--groups` says."""

    def visits(root: Path, text: str) -> None:
        draw(root)
        files = [f"{name}/{path.name}" for name in NAMES for path in sorted((root / name).iterdir())]
        lines = [f"{file},visit{number % 4}" for number, file in enumerate(files)]
        (root / "visits.csv").write_text("\n".join([text, *lines]))

    told = "24 images are 4 groups by --groups"
    of_others = "is no file, and matches none"
    return [
        Case("groups", "a table", partial(visits, text="file,group"), groups="visits.csv", says=told),
        Case(
            "groups",
            "a table with other words",
            partial(visits, text="image,visit"),
            groups="visits.csv",
            says=told,
        ),
        Case(
            "groups",
            "a table without its columns",
            partial(visits, text="one,two"),
            groups="visits.csv",
            refused="must have the columns file and group",
        ),
        Case(
            "groups",
            "a pattern of nothing",
            draw,
            groups="video[0-9]+",
            refused=of_others,
        ),
    ]


def outcome(case: Case, root: Path) -> tuple[str, str]:
    """`right`, `refused` or what is wrong; and what was said."""
    source = str(case.write(root) or root)
    labels = case.labels if case.labels in (None, "leaf") else str(root / str(case.labels))
    try:
        found = find(source, labels)
        groups = str(root / case.groups) if case.groups and case.groups.endswith(".csv") else case.groups
        data = load_data(found, (3, SIDE, SIDE), grouping=groups)
    except DataError as error:
        if case.refused:
            return ("refused" if case.refused in str(error) else "refused for another reason"), str(error)
        return "refused", str(error)
    counts = Counter(dict.fromkeys(found.class_names, 0))
    for pool in found.pools:
        counts.update(found.class_names[label] for label in pool.labels)
    findings = [*data.findings, *balance(counts, found.named)]
    said = " | ".join([*found.said, *data.warnings, *(finding.text for finding in findings)])
    if case.refused:
        return "not refused", said
    wrong = [
        what
        for what, is_so in (
            ("other classes", found.class_names != case.classes),
            ("another split", (found.held_out is not None) != case.held_out),
            ("not told", case.says not in said),
            ("other images", case.images is not None and not _is_shown(data, found.class_names, case)),
        )
        if is_so
    ]
    return ", ".join(wrong) or "right", said


def _is_shown(data: Any, names: tuple[str, ...], case: Case) -> bool:
    """Whether the images are those that were drawn, each with its own class."""
    seen = 0
    for part in (data.train, data.validation):
        for image, label in zip(part.images.permute(0, 2, 3, 1).numpy(), part.labels.tolist(), strict=True):
            drawn = [scene(label, number) for number in range(EACH)]
            apart = min(float(np.abs(image.astype(int) - each).mean()) for each in drawn)
            if apart > CLOSE:
                return False
            seen += 1
    return seen == case.images and len(names) == len(case.classes)


def main() -> None:
    rows, took = [], []
    for case in cases():
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            result, said = outcome(case, Path(folder))
            took.append(time.perf_counter() - start)
        told = said.replace(folder, "DATA")
        rows.append(
            {
                "group": case.group,
                "name": case.name,
                "result": result,
                "said": told,
                "expected": "refused" if case.refused else "right",
            }
        )
        print(f"{case.group:8} {case.name:36} {result:10} {'' if result == rows[-1]['expected'] else told}")
    summary = {
        "cases": len(rows),
        "as_expected": sum(row["result"] == row["expected"] for row in rows),
        "silently_wrong": sum(row["result"] not in ("right", "refused") for row in rows),
        "median_seconds": round(statistics.median(took), 3),
    }
    RESULTS.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")
    groups = list(dict.fromkeys(row["group"] for row in rows))
    lines = []
    for group in groups:
        of = [row for row in rows if row["group"] == group]
        good = [row for row in of if row["result"] == row["expected"]]
        lines.append(
            (
                group,
                len(of),
                sum(r["result"] == "right" for r in good),
                sum(r["result"] == "refused" for r in good),
                len(of) - len(good),
            )
        )
    write_tables(README, {"files-data": table(("", "tried", "right", "refused rightly", "wrong"), lines)})
    print(summary)


if __name__ == "__main__":
    main()
