"""Census: which layers a model has, by layer type, and how often a forward pass calls them."""

from __future__ import annotations

import inspect
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.weak import WeakTensorKeyDictionary

from advisor.errors import ModelError, first_line, is_out_of_memory
from advisor.models.blocks import evaluating, is_inside
from advisor.models.chain import CallWatcher
from advisor.models.padded import first_padding
from advisor.records import MULTIPLY_ADD_TYPES, Census, Layer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# _NormBase covers every batch and instance normalisation, the lazy and synchronised ones included.
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_ROUNDING = 1e-3  # of outputs, against the largest: rounding, not another function
_WRAP = "for a network that gives other things, too, give a module around it that returns the scores alone"
_TOO_LARGE = "takes more memory than this machine gives; give a smaller size with --input-size CxHxW"
_SILENT = (nn.Identity, nn.Dropout, nn.modules.dropout._DropoutNd, nn.Flatten)


def layer_type(module: nn.Module) -> str:
    """The layer type of one module, one of `records.LAYER_TYPES`."""
    if isinstance(module, TRANSPOSED):
        return "transposed"
    if isinstance(module, CONVOLUTIONS):
        if module.groups == 1:
            return "pointwise" if set(module.kernel_size) == {1} else "standard"
        # groups = C_in makes C_out a multiple of it: torch refuses anything else.
        return "depthwise" if module.groups == module.in_channels else "grouped"
    if isinstance(module, nn.Linear):
        return "linear"
    return "norm" if isinstance(module, NORMS) or _is_norm_by_name(module) else "other"


def is_shapes(module: nn.Module) -> bool:
    """Whether all of its tensors are on the meta device: they have shapes and no values."""
    tensors = [*module.parameters(), *module.buffers()]
    return bool(tensors) and all(tensor.is_meta for tensor in tensors)


def take_census(model: nn.Module, input_size: tuple[int, ...]) -> Census:
    """Run the classifier on one blank image of `input_size` (C, H, W) and list its layers.

    Modules that are created, or get their shapes, in the first forward pass are counted as they are
    after it. The model's weights, statistics and modes are left as they were.

    Raises:
        ModelError: the model can't run on that input, or is not a classifier.
    """
    device = "meta" if is_shapes(model) else None
    try:
        image = torch.zeros(1, *input_size, device=device)
    except RuntimeError as error:  # more bytes than can be had, or counted
        raise ModelError(f"one image of {'x'.join(map(str, input_size))} {_TOO_LARGE}") from error
    _forward(model, image)  # lazily built modules come into being here
    calls: Counter[str] = Counter()
    outputs: dict[str, int | None] = {}
    positions: Counter[str] = Counter()
    readers = _Readers()
    handles = [
        module.register_forward_hook(hook)
        for name, module in iterate_layers(model)
        for hook in (_count_call(name, calls, outputs, positions), readers.watch(name, module))
    ]
    watcher = CallWatcher(model)
    with torch.enable_grad():
        image = image.requires_grad_().clone()  # a leaf could not be written to in place
    try:
        result = _forward(model, image, with_gradients=True)
    finally:
        watcher.remove()
        for handle in handles:
            handle.remove()
        _without_graphs(model)
    if result.ndim != 2 or len(result) != 1:
        raise ModelError(
            f"{type(model).__name__} is not a classifier: for one image it returns shape "
            f"{tuple(result.shape)}, not a (1, classes) tensor; {_WRAP}"
        )
    classes = result.shape[1]

    seen: set[int] = set()
    order = {name: index for index, name in enumerate(calls)}
    norms = {name for name, module in iterate_layers(model) if layer_type(module) == "norm"}
    found = [
        _describe(name, module, calls[name], positions[name], seen, readers.only_reader(name, calls, norms))
        for name, module in iterate_layers(model)
    ]
    layers = sorted(found, key=lambda layer: order.get(layer.name, len(order)))
    heads = [
        layer.name
        for layer in layers
        if layer.layer_type in ("linear", "pointwise")
        and outputs.get(layer.name) == classes
        and not layer.followed_by  # by a norm, as inside of a network that gives features
    ]
    head = heads[-1] if heads else None
    blocks, whole_because = watcher.blocks(image, result, head)
    return Census(
        layers=tuple(layers),
        head=head,
        classes=classes,
        input_size=tuple(input_size),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        blocks=blocks,
        whole_because=whole_because,
    )


def iterate_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that computes by itself, a shared one once, under its first path.

    A module of a known type, and attention (which uses its projections' weights without calling
    them), is one layer whatever it holds; other containers count only for their own parameters.
    """
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside or isinstance(module, _SILENT):
            continue
        whole = is_whole(module)
        if whole:
            inside.update(id(child) for child in module.modules())
        is_leaf = next(module.children(), None) is None
        if whole or is_leaf or next(module.parameters(recurse=False), None) is not None:
            yield name, module


def is_whole(module: nn.Module) -> bool:
    """Whether the census counts the module with all that is inside it."""
    return layer_type(module) != "other" or isinstance(module, nn.MultiheadAttention)


def is_plain(module: nn.Module) -> bool:
    """Whether the layer computes exactly as torch's own class does."""
    for plain in (*CONVOLUTIONS, *TRANSPOSED, nn.Linear):
        if isinstance(module, plain):
            same_forward = type(module).forward is plain.forward
            inner = "_conv_forward"
            return same_forward and getattr(type(module), inner, None) is getattr(plain, inner, None)
    return False


def uses_weight_as_is(module: nn.Module) -> bool:
    """Whether the layer computes with its weight as torch's own class does, on its input or that padded.

    Weight-standardised subclasses don't, so nothing may run beside them in the hope of being merged into
    the weight later.
    """
    return is_plain(module) or first_padding(module) is not None


def logits(output: object) -> torch.Tensor:
    """The classifier's (N, classes) output: by itself, as `logits`, or the first of several."""
    if isinstance(output, torch.Tensor):
        return output
    main = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if main is None and isinstance(output, tuple | list) and output:
        main = output[0]
    if isinstance(main, torch.Tensor):
        return main
    names = f" of {', '.join(map(str, list(output)[:3]))}" if isinstance(output, Mapping) and output else ""
    kind = f"{type(output).__name__}{names}"
    raise ModelError(f"the model is not a classifier: it returns {kind}, not a (N, classes) tensor; {_WRAP}")


def has_statistics(module: nn.Module) -> bool:
    """Whether running statistics follow the batches in training; torchvision's FrozenBatchNorm2d's don't."""
    return module._buffers.get("running_mean") is not None and hasattr(module, "momentum")


def answers_otherwise(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether outputs (N, classes) differ by more than rounding, or one is NaN."""
    difference = (found - expected).abs().max()
    return not difference <= _ROUNDING * expected.abs().max().clamp_min(1)


def _is_norm_by_name(module: nn.Module) -> bool:
    # torchvision's FrozenBatchNorm2d and the many re-implementations of LayerNorm2d and RMSNorm.
    return "Norm" in type(module).__name__ and next(module.children(), None) is None


def _forward(model: nn.Module, image: torch.Tensor, *, with_gradients: bool = False) -> torch.Tensor:
    try:
        with torch.set_grad_enabled(with_gradients), evaluating(model):
            return logits(model(image))
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        size = "x".join(map(str, image.shape[1:]))
        where = f"{type(model).__name__} can't run on one {size} image"
        if is_out_of_memory(error):
            raise ModelError(f"{where}, which {_TOO_LARGE}") from error
        said = f"{_raised_in(model, error)}{first_line(error)}"
        raise ModelError(f"{where}: {said}; {_mend(model, image, error, with_gradients)}") from error


def _without_graphs(model: nn.Module) -> None:
    """What layers keep of a forward pass loses its graph, which could not be copied with them."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                vars(module)[name] = value.detach()


def _raised_in(model: nn.Module, error: BaseException) -> str:
    """The innermost part whose code was running, where there is one."""
    names = {id(module): name for name, module in model.named_modules() if name}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = [name for frame in frames if (name := names.get(id(frame.f_locals.get("self"))))]
    return f"in its {found[-1]}: " if found else ""


def _mend(model: nn.Module, image: torch.Tensor, error: BaseException, with_gradients: bool) -> str:
    if with_gradients:  # it has run without
        return "it can't be trained as it is: run it with gradients, in eval mode, and mend its code"
    try:
        inspect.signature(model.forward).bind(image)
    except (TypeError, ValueError):
        return "give a module around it whose forward takes one tensor of images, and nothing else"
    if _may_be_the_size(model, image, error):
        return "give its size with --input-size CxHxW"
    shape = ", ".join(map(str, image.shape))
    return (
        f"the size is not the cause: run it on torch.zeros({shape}) on the CPU, in float32, and mend its code"
    )


def _may_be_the_size(model: nn.Module, image: torch.Tensor, error: BaseException) -> bool:
    """Whether images of other sizes end otherwise, or the model's own check of its input has failed."""
    if isinstance(error, AssertionError | ValueError | IndexError | ArithmeticError) or image.ndim != 4:
        return True
    _, channels, height, width = image.shape
    for other in ((channels, height // 2 + 1, width // 2 + 1), (1 if channels > 1 else 3, height, width)):
        try:
            with torch.no_grad(), evaluating(model):
                model(image.new_zeros(1, *other))
        except (Exception, SystemExit) as again:  # noqa: BLE001 - a model's own code raises what it likes
            if (type(again), first_line(again)) == (type(error), first_line(error)):
                continue
        return True
    return False


def _count_call(  # type: ignore[no-untyped-def]
    name: str, calls: Counter[str], outputs: dict[str, int | None], positions: Counter[str]
):
    def hook(module: Any, args: object, output: object) -> None:
        calls[name] += 1
        outputs[name] = output.shape[1] if isinstance(output, torch.Tensor) and output.ndim > 1 else None
        if isinstance(output, torch.Tensor) and layer_type(module) in MULTIPLY_ADD_TYPES:
            channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            positions[name] += output.numel() // channels

    return hook


class _Readers:
    """Which layers read which layer's output: the very tensor, not changed in place since.

    A functional operation that also reads it (a residual addition, say) goes unseen.
    """

    def __init__(self) -> None:
        self._makers = WeakTensorKeyDictionary()  # weak: an output lives no longer than it would anyway
        self._readers: defaultdict[str, list[str]] = defaultdict(list)

    def watch(self, name: str, module: nn.Module) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        """A forward hook for the layer of that name."""
        makes = layer_type(module) in MULTIPLY_ADD_TYPES

        def hook(_: nn.Module, args: tuple[object, ...], output: object) -> None:
            for tensor in args:
                if isinstance(tensor, torch.Tensor) and tensor in self._makers:
                    maker, version = self._makers[tensor]
                    if tensor._version == version:
                        self._readers[maker].append(name)
            if makes and isinstance(output, torch.Tensor):
                self._makers[output] = (name, output._version)

        return hook

    def only_reader(self, name: str, calls: Counter[str], norms: set[str]) -> str:
        """The normalisation layer that every call of the layer feeds, and that nothing else feeds."""
        readers = set(self._readers[name])
        if len(readers) != 1 or not readers <= norms:
            return ""
        reader = readers.pop()
        return reader if len(self._readers[name]) == calls[name] == calls[reader] else ""


def _describe(
    name: str, module: nn.Module, calls: int, positions: int, seen: set[int], followed_by: str
) -> Layer:
    kind = layer_type(module)
    parameters = 0
    for parameter in module.parameters(recurse=is_whole(module)):
        parameters += parameter.numel() * (id(parameter) not in seen)
        seen.add(id(parameter))
    weight = getattr(module, "weight", None)
    return Layer(
        name=name,
        layer_type=kind,
        module=type(module).__name__,
        parameters=parameters,
        calls=calls,
        weight_shape=tuple(weight.shape) if isinstance(weight, torch.Tensor) else (),
        kernel_size=tuple(getattr(module, "kernel_size", ())) if kind not in ("norm", "other") else (),
        groups=getattr(module, "groups", 1) if kind not in ("norm", "other") else 1,
        has_bias=isinstance(getattr(module, "bias", None), nn.Parameter),
        has_affine=kind == "norm" and isinstance(weight, nn.Parameter),
        tracks_statistics=kind == "norm" and has_statistics(module),
        followed_by=followed_by,
        output_positions=positions,
    )


def fuse_norms(model: nn.Module, census: Census, modules: Sequence[str]) -> None:
    """Fold each BatchNorm inside `modules` into the convolution that it alone follows, in place.

    Right in eval mode only; neither can be trained after.
    """
    inside = frozenset(modules)
    calls = {layer.name: layer.calls for layer in census.layers}
    for layer in census.of_type("standard", "pointwise", "depthwise", "grouped", "transposed"):
        if not is_inside(layer.name, inside) or not layer.followed_by:
            continue
        if not layer.calls == calls[layer.followed_by] == 1:
            continue
        convolution: Any = model.get_submodule(layer.name)
        norm: Any = model.get_submodule(layer.followed_by)
        if not uses_weight_as_is(convolution) or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        if norm.running_mean is None or norm.running_var is None:
            continue
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
            transpose=isinstance(convolution, TRANSPOSED),
        )
        convolution.requires_grad_(False)
        parent, _, name = layer.followed_by.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
