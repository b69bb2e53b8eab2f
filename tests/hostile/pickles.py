"""Pickles that want more than to be data, written opcode by opcode, and the files that hide them."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile

from tests.hostile.bounded import CANARY
from tests.hostile.saved import known_network, model, saved

TOUCH = f"touch {CANARY}"
WRITE = f"open({CANARY!r}, 'w').close()"
# What attacks call, with what: each leaves the canary where it is run.
CALLS = {
    "os system": ("os", "system", TOUCH),
    "posix system": ("posix", "system", TOUCH),
    "nt system": ("nt", "system", TOUCH),
    "os popen": ("os", "popen", TOUCH),
    "os mkdir": ("os", "mkdir", CANARY),
    "exec": ("builtins", "exec", WRITE),
    "exec of Python 2": ("__builtin__", "execfile", CANARY),
    "eval": ("builtins", "eval", WRITE),
    "eval of Python 2": ("__builtin__", "eval", WRITE),
    "compile": ("builtins", "compile", WRITE, CANARY, "exec"),
    "import": ("builtins", "__import__", "os"),
    "getattr": ("builtins", "getattr", "os", "system"),
    "open": ("builtins", "open", CANARY, "w"),
    "io open": ("io", "open", CANARY, "w"),
    "C io open": ("_io", "open", CANARY, "w"),
    "FileIO": ("_io", "FileIO", CANARY, "w"),
    "codecs open": ("codecs", "open", CANARY, "w"),
    "breakpoint": ("builtins", "breakpoint"),
    "subprocess Popen": ("subprocess", "Popen", TOUCH),
    "subprocess getoutput": ("subprocess", "getoutput", TOUCH),
    "commands of Python 2": ("commands", "getoutput", TOUCH),
    "pty": ("pty", "spawn", TOUCH),
    "runpy": ("runpy", "run_path", CANARY),
    "importlib": ("importlib", "import_module", "antigravity"),
    "timeit": ("timeit", "timeit", WRITE),
    "pdb": ("pdb", "run", WRITE),
    "bdb": ("bdb", "Bdb.run", WRITE),
    "cProfile": ("cProfile", "run", WRITE),
    "profile": ("profile", "run", WRITE),
    "trace": ("trace", "Trace.run", WRITE),
    "code": ("code", "InteractiveInterpreter.runcode", WRITE),
    "doctest": ("doctest", "debug_script", WRITE),
    "pydoc": ("pydoc", "pipepager", "text", TOUCH),
    "webbrowser": ("webbrowser", "open", "file:///dev/null"),
    "shutil": ("shutil", "copyfile", "/dev/null", CANARY),
    "pathlib": ("pathlib", "Path.touch", CANARY),
    "tempfile": ("tempfile", "mkdtemp"),
    "logging": ("logging", "FileHandler", CANARY),
    "sqlite": ("sqlite3", "connect", CANARY),
    "socket": ("socket", "create_connection", "localhost"),
    "urllib": ("urllib.request", "urlopen", "file:///etc/passwd"),
    "smtplib": ("smtplib", "SMTP", "localhost"),
    "ctypes": ("ctypes", "CDLL", "libc.so.6"),
    "sys exit": ("sys", "exit", "1"),
    "os exit": ("os", "_exit", "1"),
    "signal": ("signal", "raise_signal", "9"),
    "attrgetter": ("operator", "attrgetter", "system"),
    "methodcaller": ("operator", "methodcaller", "system", TOUCH),
    "reduce": ("functools", "reduce", "os.system", TOUCH),
    "partial": ("functools", "partial", "os.system", TOUCH),
    "code object": ("types", "CodeType", WRITE),
    "function": ("types", "FunctionType", WRITE),
    "marshal": ("marshal", "loads", WRITE),
    "pickle": ("pickle", "loads", WRITE),
    "C pickle": ("_pickle", "loads", WRITE),
    "cloudpickle": ("cloudpickle", "loads", WRITE),
    "joblib": ("joblib", "load", CANARY),
    "dill": ("dill", "loads", WRITE),
    "numpy load": ("numpy", "load", CANARY),
    "numpy runstring": ("numpy.testing._private.utils", "runstring", WRITE),
    "numpy save": ("numpy", "save", CANARY, "1"),
    "torch load": ("torch", "load", CANARY),
    "torch save": ("torch", "save", "1", CANARY),
    "torch os": ("torch", "os.system", TOUCH),
    "torch hub": ("torch.hub", "load", "somebody/something", "model"),
    "torch jit": ("torch.jit", "load", CANARY),
    "torch extension": ("torch.utils.cpp_extension", "load_inline", CANARY, TOUCH),
    "torch storage": ("torch.storage", "_load_from_bytes", WRITE),
    "torch graph": ("torch.fx.graph_module", "reduce_graph_module", WRITE),
    "torch package": ("torch.package", "PackageImporter", CANARY),
    "torch collect_env": ("torch.utils.collect_env", "run", TOUCH),
    "torch classes": ("torch._C", "_jit_script_compile", WRITE),
    "a layer with arguments": ("torch.nn.modules.linear", "Linear", "100000000", "100000000"),
    "a loop": ("time", "sleep", "100"),
    "this package": ("advisor.costs.child", "main", CANARY),
}


def text(value):
    """Push a string."""
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def whole(body, protocol=2):
    """A pickle of what is on the stack then."""
    return b"\x80" + bytes([protocol]) + body + b"."


def argument(value):
    """Push an argument: figures as numbers."""
    return b"L" + value.encode() + b"L\n" if value.isdigit() else text(value)


def called(call, form="GLOBAL REDUCE"):
    """What is left on the stack after the call, in one of the ways in which pickles make one."""
    module, name, *given = call
    pushed = b"".join(map(argument, given))
    named = f"c{module}\n{name}\n".encode()
    plain = named + b"(" + pushed + b"tR"
    put = text(module) + b"q\x05" + b"0" + text(name) + b"r\x07\x00\x00\x000"
    forms = {
        "GLOBAL REDUCE": plain,
        "STACK_GLOBAL REDUCE": text(module) + text(name) + b"\x93(" + pushed + b"tR",
        "memoised STACK_GLOBAL": text(module)
        + b"\x940"
        + text(name)
        + b"\x940h\x00h\x01\x93("
        + pushed
        + b"tR",
        "put by number": put + b"h\x05j\x07\x00\x00\x00\x93(" + pushed + b"tR",
        "INST": b"(" + pushed + f"i{module}\n{name}\n".encode(),
        "OBJ": b"(" + named + pushed + b"o",
        "NEWOBJ": named + b"(" + pushed + b"t\x81",
        "NEWOBJ_EX": named + b"(" + pushed + b"t}\x92",
        # Of what a harmless class makes: its state is to replace what is called later.
        "BUILD": b"ccollections\nOrderedDict\n)R}" + text("__setstate__") + named + b"sb(" + pushed + b"tb",
        "as an element": b"]" + plain + b"a",
        "as a key": b"}" + plain + b"K\x01s",
        "as a persistent id": plain + b"Q",
        "dropped": plain + b"0}",
        "in a frame": b"\x95" + struct.pack("<Q", len(plain)) + plain,
    }
    return forms[form]


FORMS = (
    *("STACK_GLOBAL REDUCE", "memoised STACK_GLOBAL", "put by number", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"),
    *("BUILD", "as an element", "as a key", "as a persistent id", "dropped", "in a frame"),
)


def zipped(pickled, records=(), **how):
    """A file as torch.save writes it, around any pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **how) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
        for name, content in records:
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def older(pickled, after=b"\x80\x02]."):
    """A file of torch.save's older format, around any pickle."""
    about = b"\x80\x02}(X\x10\x00\x00\x00protocol_versionM\xe9\x03X\r\x00\x00\x00little_endian\x88u."
    return b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03." + about + pickled + after


def scripted(pickled):
    """As TorchScript, around any pickle."""
    return zipped(pickled, [("constants.pkl", whole(b")")), ("code/m.py", b"")])


def beside_weights(pickled_value):
    """A real checkpoint, with something else in it."""
    content = saved({"model": known_network().state_dict(), "x": 1234567})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in records.items():
            archive.writestr(name, value.replace(b"J\x87\xd6\x12\x00", pickled_value))
    return file.getvalue()


def tensor(count="4", size=(4,), stride=(1,), key="0", offset=0, kind="FloatStorage"):
    """What torch.save writes for a tensor, with any figures."""

    def number(value):
        return b"L%dL\n" % value

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    storage += number(int(count)) + b"tQ"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(size)
    return rebuilt + numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtR"


def weights(*tensors):
    """A state dict of these."""
    pairs = b"".join(text(f"layer{number}.weight") + each for number, each in enumerate(tensors))
    return whole(b"}(" + pairs + b"u")


DATA = [("data/0", struct.pack("<4f", 1, 2, 3, 4))]


def doubled(kind, times):
    """A value that holds the one before it twice, again and again."""
    if kind == "tuples":
        return b")" + b"2\x86" * times
    return b"]" + b"".join(b"q%c0](h%ch%ce" % (n, n, n) for n in range(times))


def structures():
    """Pickles that name nothing harmful, by name: what they unfold to is the trouble."""
    deep = 100_000
    return {
        "memo of a huge number": whole(b"Nr\xff\xff\xff\x7f"),
        "memo of a huge text number": whole(b"Np99999999999\n"),
        "memo that is not there": whole(b"j\x00\x00\x00\x10"),
        "huge frame": whole(b"\x95" + struct.pack("<Q", 2**40) + b"N", 4),
        "huge frame beyond 64 bits": whole(b"\x95" + b"\xff" * 8 + b"N", 4),
        "huge bytes": whole(b"\x8e" + struct.pack("<Q", 2**34) + b"abc", 4),
        "huge text": whole(b"\x8d" + struct.pack("<Q", 2**34) + b"abc", 4),
        "huge bytearray": whole(b"\x96" + struct.pack("<Q", 2**34) + b"abc", 5),
        "huge short bytes": whole(b"B" + struct.pack("<I", 2**31 - 1) + b"abc", 3),
        "huge integer": whole(b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc"),
        "negative integer length": whole(b"\x8b" + struct.pack("<i", -1) + b"abc"),
        "long decimal": whole(b"L" + b"9" * 200_000 + b"L\n"),
        "not a number": whole(b"}" + text("a") + b"Fnan\ns"),
        "nested lists": whole(b"]" * deep + b"a" * (deep - 1)),
        "nested tuples": whole(b")" + b"\x85" * deep),
        "nested dicts": whole(b"}" + (text("a") + b"}") * deep + b"s" * deep),
        "tuples doubled": whole(doubled("tuples", 60)),
        "tuples doubled as a key": whole(b"}" + doubled("tuples", 60) + b"K\x01s"),
        "tuples doubled as a set": whole(b"\x8f(" + doubled("tuples", 60) + b"\x90", 4),
        "tuples doubled as a frozen set": whole(b"(" + doubled("tuples", 60) + b"\x91", 4),
        "tuples doubled as weights": whole(b"}" + text("state_dict") + doubled("tuples", 60) + b"s"),
        "tuples doubled as an id": whole(doubled("tuples", 60) + b"Q"),
        "lists doubled": whole(b"}" + text("model") + doubled("lists", 60) + b"s"),
        "a set of sets, doubled": whole(b"(" + b"(2\x91(2\x91" * 30 + b"\x91", 4),
        "a list of itself": whole(b"]q\x00h\x00a"),
        "a dict of itself": whole(b"}q\x00" + text("state_dict") + b"h\x00s"),
        "a tuple of itself": whole(b"]q\x00h\x00\x85a"),
        "a mapping of itself": whole(b"ccollections\nOrderedDict\n)Rq\x00" + text("model") + b"h\x00s"),
        "a list as a key": whole(b"}]K\x01s"),
        "nothing on the stack": whole(b"0000"),
        "no end": b"\x80\x02}",
        "an end alone": whole(b""),
        "marks alone": whole(b"((((((("),
        "state for a number": whole(b"K\x01}b"),
        "append to a number": whole(b"K\x01K\x02a"),
        "unknown opcode": whole(b"\xff"),
        "protocol 255": whole(b"N", 255),
        "extension registry": whole(b"\x82\x01"),
        "large extension number": whole(b"\x84\xff\xff\xff\x7f"),
        "out of band buffer": whole(b"\x97", 5),
        "no name": whole(b"c\n\n)R"),
        "a name with line ends": whole(text("o\ns") + text("sys\x1b[31m\ntem") + b"\x93)R", 4),
        "a name that is no text": whole(b"K\x01K\x02\x93", 4),
        "ten thousand names": whole(b"]" + b"".join(b"cx%d\ny\na" % n for n in range(10_000))),
        "a storage without an end": whole(b"(" + text("storage") + b"tQ"),
        "an id that is a number": whole(b"K\x01Q"),
        "an id in text": whole(b"Pstorage\n", 0),
        "keys of every kind": whole(b"}(" + b"K\x01Nj\x88N)NG" + bytes(8) + b"Nu"),
        "keys with line ends": whole(b"}" + text("a\n\x1b[2Jb") + b"K\x01s"),
        "a key of ten thousand digits": whole(
            b"}\x8b" + struct.pack("<i", 5000) + b"\x7f" * 5000 + b"K\x01s"
        ),
        "half a character": whole(b"}X\x03\0\0\0\xed\xa0\x80K\x01s"),
        "lists doubled as the network's name": whole(b"}" + text("arch") + doubled("lists", 60) + b"s"),
        "lists doubled as settings": whole(
            b"}"
            + b"".join(
                text(name) + doubled("lists", 60) + b"s"
                for name in ("class_names", "mean", "img_size", "id2label")
            )
        ),
        "a key of a megabyte": whole(b"}" + text("a" * 10**6) + b"K\x01s"),
    }


def tensors():
    """Files whose tensors claim what is not so, by name."""
    state = {
        "huge storage": weights(tensor(count=str(2**40))),
        "huge storage and size": weights(tensor(count=str(2**40), size=(2**40,))),
        "size that overflows": weights(tensor(size=(2**33, 2**33), stride=(2**33, 1))),
        "size beyond 64 bits": weights(tensor(size=(2**70,))),
        "repeated without an end": weights(tensor(size=(10**6, 10**6), stride=(0, 0))),
        "repeated a little": weights(tensor(size=(2**28,), stride=(0,))),
        "beyond the end": weights(tensor(offset=1)),
        "before the start": weights(tensor(offset=-1)),
        "backwards": weights(tensor(offset=3, stride=(-1,))),
        "negative size": weights(tensor(size=(-4,))),
        "negative count": weights(tensor(count="-4")),
        "strides of another rank": weights(tensor(stride=(1, 1))),
        "a thousand dimensions": weights(tensor(size=(1,) * 1000, stride=(1,) * 1000)),
        "none stored": weights(tensor(key="7")),
        "a key out of the archive": weights(tensor(key="../../../../etc/passwd")),
        "an absolute key": weights(tensor(key="/etc/passwd")),
        "other type": weights(tensor(kind="ComplexDoubleStorage")),
        "a type that is none": weights(tensor(kind="nn")),
        "a type of eight bytes": weights(tensor(kind="DoubleStorage")),
        "quantised type": weights(tensor(kind="QInt8Storage")),
        "five thousand of one": weights(*[tensor()] * 5000),
    }
    return {
        name: (zipped(each, DATA), older(each, b"\x80\x02]X\x01\x00\x00\x000a."))
        for name, each in state.items()
    }


def repeated():
    """A file of half a megabyte of half precision, of which thousands of tensors are."""
    one = tensor(count=str(2**18), size=(2**18,), kind="HalfStorage")
    return zipped(weights(*[one] * 5000), [("data/0", bytes(2**19))])


def modules():
    """Whole modules that are not what they should be, by name: files."""
    layers = b"ctorch.nn.modules."

    def made(kind, **attributes):
        pairs = b"".join(text(name) + value for name, value in attributes.items())
        return layers + kind.encode() + b"\n)\x81}(" + pairs + b"ub"

    empty = b"ccollections\nOrderedDict\n)R"
    plain = dict.fromkeys(("_parameters", "_buffers", "_modules", "_forward_hooks"), empty)
    inside = b"ccollections\nOrderedDict\n)R" + text("0")
    bodies = {
        "no state": layers + b"linear\nLinear\n)\x81",
        "a number for its state": layers + b"linear\nLinear\n)\x81K\x01b",
        "called with arguments": layers + b"linear\nLinear\n(L100000000L\nL100000000L\ntR",
        "called for an embedding": layers + b"sparse\nEmbedding\n(L10000000000L\nL10L\ntR",
        "without layers": made("container\nSequential", _parameters=empty),
        "layers that are numbers": made("container\nSequential", **plain | {"_modules": inside + b"K\x01s"}),
        "parameters that are text": made(
            "linear\nLinear", **plain | {"_parameters": inside + text("a") + b"s"}
        ),
        "parameters that are a list": made("linear\nLinear", **plain | {"_parameters": b"]"}),
        "it is its own layer": layers
        + b"container\nSequential\n)\x81q\x00}("
        + b"".join(text(name) + value for name, value in (plain | {"_modules": inside + b"h\x00s"}).items())
        + b"ub",
        "a hook that is a class": made(
            "linear\nIdentity", **plain | {"_forward_hooks": empty + b"K\x01" + layers + b"linear\nLinear\ns"}
        ),
        "forward is a class": made("linear\nIdentity", **plain, forward=layers + b"linear\nLinear\n"),
        "a partial of a layer": made(
            "linear\nIdentity",
            **plain,
            forward=b"cfunctools\npartial\n"
            + layers
            + b"linear\nLinear\n\x85R("
            + layers
            + b"linear\nLinear\n(L100000L\nL100000L\nt}NtbR"[:-1],
        ),
        "a graph": b"ctorch.fx.graph_module\nreduce_graph_module\n(}" + text(WRITE) + b"tR",
        "a scripted module": b"ctorch.jit._script\nunpackage_script_module\n("
        + text("a")
        + text("b")
        + b"tR",
        "state for the class": layers + b"linear\nLinear\n}" + text("forward") + b"K\x01sb",
        "a class alone": layers + b"linear\nLinear\n",
        "a base class": made("module\nModule", **plain),
        "a lazy layer": made("linear\nLazyLinear", **plain),
    }
    deep = b"".join(
        layers
        + b"container\nSequential\n)\x81}("
        + text("_modules")
        + b"ccollections\nOrderedDict\n)R"
        + text("0")
        for _ in range(3000)
    )
    bodies["three thousand deep"] = deep + b"N" + (b"s" + text("_parameters") + empty + b"ub") * 3000
    return {name: zipped(whole(body)) for name, body in bodies.items()}


def zips():
    """Archives that are not what torch.save writes, by name: files."""
    plain = weights(tensor())
    good = zipped(plain, DATA)

    def changed(old, new, count=-1):
        return good.replace(old, new, count)

    def inside(info, content=b""):
        file = io.BytesIO(good)
        with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a name that is there already
            archive.writestr(info, content)
        return file.getvalue()

    link = zipfile.ZipInfo("archive/data/1")
    link.external_attr = 0xA1FF0000
    central = good.rindex(b"PK\x01\x02")
    return {
        "bomb in the pickle": lambda: zipped(
            whole(b"X\x00\x00\x00\x08" + bytes(2**27)), compression=zipfile.ZIP_DEFLATED
        ),
        "bomb in the data": lambda: zipped(
            plain, [("data/0", bytes(2**26))], compression=zipfile.ZIP_DEFLATED
        ),
        "bomb in the code": lambda: zipped(
            plain, [*DATA, ("code/a", bytes(2**26))], compression=zipfile.ZIP_DEFLATED
        ),
        "bomb of bzip2": lambda: zipped(plain, [("data/0", bytes(2**26))], compression=zipfile.ZIP_BZIP2),
        "bomb of lzma": lambda: zipped(plain, [("data/0", bytes(2**24))], compression=zipfile.ZIP_LZMA),
        "compressed a little": zipped(plain, DATA, compression=zipfile.ZIP_DEFLATED),
        "an archive in it": zipped(plain, [*DATA, ("inner.pt", good)]),
        "an archive as its pickle": zipped(good, DATA),
        "path traversal": inside("archive/../../../../tmp/canary", b"x"),
        "absolute path": inside("/tmp/canary", b"x"),
        "symbolic link": inside(link, b"/etc/passwd"),
        "data.pkl twice": inside("archive/data.pkl", whole(called(CALLS["os system"]))),
        "data.pkl in two folders": inside("other/data.pkl", whole(called(CALLS["os system"]))),
        "data.pkl is a folder": inside("archive/data.pkl/", b""),
        "names without a folder": changed(b"archive/", b"archive_"),
        "encrypted": changed(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"),
        "unknown compression": changed(
            b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x63\x00"
        ),
        "huge declared size": good[: central + 24] + b"\xff\xff\xff\x7f" + good[central + 28 :],
        "wrong checksum": changed(b"little", b"big\0\0\0", 1),
        "other byte order": zipped(plain, DATA).replace(b"little", b"big   "),
        "no central directory": good[:central],
        "half": good[: len(good) // 2],
        "an end alone": b"PK\x05\x06" + bytes(18),
        "a start alone": b"PK\x03\x04",
        "empty archive": b"PK\x03\x04" + bytes(30) + b"PK\x05\x06" + bytes(18),
        "sixty thousand entries": many_entries,
        "a name of null bytes": changed(b"archive/byteorder", b"archive/byte\0rder"),
        "a name that is no text": changed(
            b"archive/byteorder", b"archive/\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7"
        ),
        "exported, with nothing": zipped(plain, [("model_weights_config.json", b"")]),
        "exported, with nested lists": zipped(plain, [("model_weights_config.json", b"[" * 100_000)]),
        "exported, with another shape": zipped(
            plain, [("model_weights_config.json", b'{"config": [1, null]}')]
        ),
        "exported, with a number": zipped(plain, [("model_weights_config.json", b'{"config": {"a": 3}}')]),
    }


def many_entries():
    """A small archive that names one entry again and again."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", whole(b"}"))
        for number in range(60_000):
            archive.writestr(f"a/{number}", b"")
    return file.getvalue()


def exported(old, new):
    """A file of torch.export, with a part of what it describes replaced."""
    with zipfile.ZipFile(io.BytesIO(model("program.pt2"))) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in records.items():
            archive.writestr(name, value.replace(old, new) if name.endswith(".json") else value)
    assert any(old in value for name, value in records.items() if name.endswith(".json")), old
    return file.getvalue()
