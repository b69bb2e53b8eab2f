"""What stands among a network's weights without being of it: what training needed, how weights were kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from advisor.errors import ModelError

StateDict = dict[str, torch.Tensor]

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_forward_module.")
# A part of a name that tells what its tensor is for: none of these runs when the network does.
_OF_TRAINING = re.compile(
    r"(.*_)?(loss(es)?|criteri(on|a)|metrics?|acc(uracy)?\d?|auroc|f1(_score)?|precision|recall|confmat"
    r"|confusion_matrix|total_ops|total_params|n_averaged|num_updates|decay|queue(_ptr)?|centers?|arc_?face"
    r"|arc_?margin|cos_?face|margin|prototypes?|teacher|discriminator|log_?vars?|class_weights?|pos_weight"
    r"|relative_position_index|attn_mask|position_ids)(_fn|_func|_layer|_head|_fc)?"
)
_OBSERVERS = re.compile(r"(.*_)?(activation_post_process|weight_fake_quant|fake_quant\w*|observer)(_\d+)?")
_LATER = ("teacher", "target", "momentum", "encoder_k", "discriminator", "key_encoder", "aux")
_AVERAGES = ("ema", "average", "averaged", "swa", "shadow")

# What names tell of networks that are no image classifiers.
_DETECTION = r"(^|\.)(roi_heads|rpn\.head|bbox_head|head\.(classification|regression)_head)\."
_OTHERS = {
    "a detection network (R-CNN, RetinaNet, FCOS or SSD)": _DETECTION,
    "a detection transformer (DETR)": r"(^|\.)(bbox_embed|query_embed)\.",
    "a YOLO detection network": r"(^|\.)(dfl\.conv|cv3\.0\.0|anchor_grid|model\.\d+\.(m|anchors))(\.|$)",
    "a segmentation network (DeepLab, FCN or LRASPP)": (
        r"(^|\.)(aux_classifier|classifier\.0\.convs|aspp|low_classifier)\."
    ),
    "a segmentation network (segmentation_models_pytorch)": r"(^|\.)segmentation_head\.",
    "a segmentation network (MMSegmentation)": r"(^|\.)decode_head\.",
    "a segmentation network (U-Net)": (
        r"(^|\.)(up\d\.(up|conv)|up_?conv\d|decoder\d|double_conv|outc|up_blocks)\."
    ),
    "a language model": (
        r"(^|\.)(lm_head|word_embeddings|tok_embeddings|embed_tokens|wte|self_attn\.q_proj)\."
    ),
}
_ADAPTERS = re.compile(r"\.(lora_[AB]|lora_magnitude|hada_w1|lokr_w1|ia3_l)\b")


def unwrapped_names(state: Mapping[str, torch.Tensor]) -> StateDict:
    """Without the parts that torch.compile, checkpointing and sharding put into names, anywhere."""
    found = {}
    for name, value in state.items():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")  # noqa: PLW2901 - one after the other
        found[name] = value
    return found


def is_of_training(name: str) -> bool:
    """Whether an entry serves training or counting alone, as its name says."""
    return any(_OF_TRAINING.fullmatch(part) for part in name.lower().split("."))


def rank(prefix: str) -> int:
    """The order in which copies of one network are taken: an average of the weights is what is evaluated."""
    parts = prefix.lower().replace("_", ".").split(".")
    if any(part in _AVERAGES or part.startswith(_AVERAGES) for part in parts):
        return 0
    return 2 if any(later in prefix.lower() for later in _LATER) else 1


def refuse_other_kinds(names: Iterable[str]) -> None:
    """Raises ModelError where names show a network that is no image classifier, or an adapter alone."""
    names = list(names)
    lora = [
        name for name in names if re.search(r"\.(lora_[AB]|lora_magnitude|hada_w1|lokr_w1|ia3_l)\b", name)
    ]
    if lora:
        whole = len(lora) < len(names) / 2 or any(".base_layer." in name for name in names)
        raise ModelError(
            "holds a model with PEFT adapters beside its weights; save it after model.merge_and_unload()"
            if whole
            else "holds PEFT adapters alone, without the model that they go on; load it with PeftModel, and "
            "save the result of model.merge_and_unload()"
        )
    for kind, pattern in _OTHERS.items():
        if any(re.search(pattern, name) for name in names):
            raise ModelError(f"holds {kind}, not an image classifier; give one, or its backbone with a head")


def folded(state: StateDict) -> tuple[StateDict, list[str]]:
    """Weights that are kept in parts become the plain ones, and in words what was done.

    Pruned ones are multiplied with their masks, weight and spectral norm computed, observers of
    quantisation-aware training left out.
    """
    state, notes = dict(state), []
    observed = [n for n in state if any(_OBSERVERS.fullmatch(part) for part in n.split("."))]
    if observed:
        state = {name: value for name, value in state.items() if name not in {*observed}}
        notes.append("it was trained for quantisation: its observers are left out, so costs are in float32")
    pruned = [name.removesuffix("_orig") for name in state if name.endswith("_orig") and _mask(name) in state]
    kept = total = 0
    for name in pruned:
        mask = state.pop(f"{name}_mask")
        kept, total = kept + int(mask.count_nonzero()), total + mask.numel()
        state[name] = state.pop(f"{name}_orig") * mask.to(torch.float32)
    if pruned:
        notes.append(
            f"it was pruned: its masks are multiplied in, {1 - kept / max(total, 1):.0%} of those weights "
            "are zero, and training would fill them"
        )
    normed = False
    for name in [*state]:
        base, _, last = name.rpartition(".")
        if name.endswith("weight_g") and f"{name[:-1]}v" in state:
            magnitude, direction, target = state.pop(name), state.pop(f"{name[:-1]}v"), name[:-2]
        elif last == "original0" and f"{base}.original1" in state:
            magnitude, direction = state.pop(name), state.pop(f"{base}.original1")
            target = base.replace("parametrizations.", "")
        else:
            continue
        axes = [axis for axis, size in enumerate(magnitude.shape) if size == 1 and direction.shape[axis] != 1]
        state[target] = magnitude * direction / direction.float().norm(dim=axes, keepdim=True)
        normed = True
    if normed:
        notes.append("weight norm is folded into plain weights")
    return state, notes


def _mask(name: str) -> str:
    return f"{name.removesuffix('_orig')}_mask"
