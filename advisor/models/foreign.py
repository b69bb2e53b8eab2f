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
    lora = [name for name in names if _ADAPTERS.search(name)]
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
