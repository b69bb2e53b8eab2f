"""What the images are brought to, where the user doesn't say: told by the network, or by the data."""

from __future__ import annotations

from dataclasses import dataclass

from advisor.data import Normalisation
from advisor.data.pools import Found
from advisor.errors import ModelError
from advisor.models import LoadedModel, take_census
from advisor.models.images import stem_channels
from advisor.records import Census, Framing

Size = tuple[int, int, int]  # (C, H, W)

_LARGEST = 512  # pixels of a side that are taken without being asked: a camera's 4000 would fill any RAM


@dataclass(frozen=True, slots=True)
class Images:
    """What the images are brought to."""

    input_size: Size
    census: Census  # the model's, at that size
    normalisation: Normalisation | None  # None: the default of that many channels
    framing: Framing | None
    assumed: tuple[str, ...]  # in words


def assume(
    loaded: LoadedModel,
    found: Found | None,
    input_size: Size | None,
    normalisation: Normalisation | None,
    framing: Framing | None,
) -> Images:
    """What is given, else what the network says, else what the data says.

    Raises:
        ModelError: nothing tells the input size, or the model can't run on it.
    """
    assumed, config = [], loaded.images
    size = loaded.input_size if input_size is None else input_size
    of_data = _size_that_fits(loaded, found) if loaded.size_is_default and input_size is None else None
    if of_data is not None and of_data[0] != size:
        size, census, line = of_data
        assumed.append(line)
    elif size is None:
        size, census, line = _size_of_data(loaded, found)
        assumed.append(line)
    else:
        census = take_census(loaded.module, size)
    parts: dict[str, bool] = {}
    if config is not None:
        of_network = config.framing is not None  # else the file's own words, which tell their size themselves
        parts[_by(config.input_size)] = input_size is None and size == config.input_size and of_network
    if found is not None:
        if config is not None and normalisation is None and len(config.mean) == size[0]:
            normalisation = Normalisation(config.mean, config.std)
            parts[f"mean {_listed(config.mean)}, std {_listed(config.std)}"] = True
        if config is not None and framing is None and config.framing is not None:
            framing = config.framing
            parts[_framing(config.framing, config.unknown)] = True
    if config is not None and any(parts.values()):
        of = f" of {config.name}" if config.name else ""
        assumed.append(f"from {config.origin}{of}: {', '.join(part for part in parts if parts[part])}")
    if found is not None and normalisation is None:
        which = "ImageNet's mean and std" if size[0] == 3 else "a mean and std of 0.5"
        assumed.append(
            f"images are normalised with {which}: give --mean and --std where others were trained with"
        )
    return Images(size, census, normalisation, framing, tuple(assumed))


def _size_of_data(loaded: LoadedModel, found: Found | None) -> tuple[Size, Census, str]:
    """The size that all images have, if the model runs on it."""
    untold = f"{loaded.name}: the input size can't be told from it"
    if found is None:
        raise ModelError(f"{untold}; give --input-size CxHxW")
    stem = stem_channels(loaded.module)
    sizes = {size for pool in found.pools for size in pool.sizes(stem)}
    sides = sorted({size[1:] for size in sizes}, key=lambda side: (side[0] * side[1], side))
    if len(sides) != 1:
        several = f", and images of {found.source} have several, from {_by(sides[0])} to {_by(sides[-1])}"
        raise ModelError(f"{untold}{several if sides else ''}; give --input-size CxHxW")
    if max(sides[0]) > _LARGEST:
        raise ModelError(
            f"{untold}, and the images of {found.source}, {_by(sides[0])}, are larger than what is taken "
            f"without being asked ({_LARGEST}); give --input-size CxHxW"
        )
    own = max(channels for channels, *_ in sizes)  # 3 where some are coloured
    channels = stem if stem is not None and (stem == own or stem in (1, 3)) else own
    size = (channels, *sides[0])
    try:
        census = take_census(loaded.module, size)
    except ModelError as error:
        raise ModelError(f"{untold}; the size of the images of {found.source} was tried: {error}") from error
    return (
        size,
        census,
        f"the input size is {_by(size)}: the images of {found.source} are all {_by(sides[0])}",
    )


def _size_that_fits(loaded: LoadedModel, found: Found | None) -> tuple[Size, Census, str] | None:
    """The size that all images have, if they have one and the model runs on it."""
    try:
        return None if found is None else _size_of_data(loaded, found)
    except ModelError:
        return None


def _framing(framing: Framing, unknown: str) -> str:
    mode = "" if framing.mode == "center" else f" ({framing.mode})"
    instead = f" in place of {unknown}, which is not known here" if unknown else ""
    return f"crop {framing.crop:g}{mode}, {framing.interpolation}{instead}"


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def _listed(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
