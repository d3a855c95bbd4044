"""Recipe: everything from voxel to score. A run is a dataset and a recipe.

A network's own fields are defined beside the network; `parse_recipe` is given the table of networks, so this
module knows none of them. Sizes that are tuned are millimetres; patches, windows and anchors are voxels of the
recipe's grid, because networks are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationInfo,
    model_validator,
)

from voxray.core.config import Config, parse, with_overrides
from voxray.core.task_name import TaskName

SizeVox = tuple[PositiveInt, PositiveInt, PositiveInt]
Spacing = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
_Share = Annotated[float, Field(ge=0, le=1)]
_Range = tuple[float, float]
Selection = bool | tuple[str, ...]
"""All classes, none, or those named."""


class GridConfig(Config):
    """The grid that the network sees."""

    spacing_mm: Spacing
    orientation: Literal["RAS"] = "RAS"


class WindowIntensity(Config):
    """HU clipped to [low, high] and scaled to [0, 1]."""

    kind: Literal["window"] = "window"
    low_hu: float
    high_hu: float

    @model_validator(mode="after")
    def _ordered(self) -> WindowIntensity:
        if self.low_hu >= self.high_hu:
            raise ValueError(f"low_hu must be below high_hu, got {self.low_hu} and {self.high_hu}")
        return self


class ZScoreIntensity(Config):
    """Per volume: z-score over the voxels that are not 0 HU (those stay 0), then min-max to [-1, 1].

    The published whole-body weights expect exactly this, its dip at 0 HU included; prefer `window` for new data.
    """

    kind: Literal["zscore_minmax"] = "zscore_minmax"
    train_smooth_sigma_vox: NonNegativeFloat = 0.0
    """Gaussian smoothing of training patches only, as published."""


Intensity = Annotated[WindowIntensity | ZScoreIntensity, Field(discriminator="kind")]


class PatchConfig(Config):
    """How training patches are cut from tiles, and tiles from cases."""

    size_vox: SizeVox
    margin_vox: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] = (32, 32, 16)
    """What a tile has beyond a patch on each axis, so that every epoch crops anew."""
    max_object_vox: SizeVox = (64, 64, 64)
    """Detection: objects up to this size lie whole in some tile."""
    foreground: _Share = 0.5
    """The share of patches that are centred on an object (detection) or a labelled voxel (segmentation)."""
    per_tile: PositiveInt = 4
    """Patches cut from a tile each time that it is read."""
    whole_boxes: bool = True
    """Detection: an object that the patch cuts is dropped from its truth unless most of it remains."""
    pad_hu: int = -1024
    """What lies beyond the scan where it is smaller than the patch."""


class NetworkConfig(Config):
    """What every network's configuration has; each network extends it beside its code."""

    kind: str
    tasks: ClassVar[tuple[str, ...]] = ("detection", "segmentation")
    """What its output can answer."""

    def build(self, recipe: Recipe, num_classes: int) -> Any:
        """The untrained `torch.nn.Module` whose forward gives the task's output type."""
        del recipe, num_classes
        raise AssertionError(f"{type(self).__name__} must define build")

    @property
    def local(self) -> bool:
        """Whether an answer depends on its surroundings alone, not on the whole window, which may then grow."""
        return False

    @property
    def stride_vox(self) -> tuple[int, int, int]:
        """Input sides, and places of windows, must be multiples of this."""
        raise AssertionError(f"{type(self).__name__} must define stride_vox")

    @property
    def level_strides_vox(self) -> tuple[tuple[int, int, int], ...]:
        """Networks that detect: the stride of each output map, finest first."""
        raise AssertionError(f"{type(self).__name__} must define level_strides_vox")


class AnchorConfig(Config):
    """The anchor boxes: base shapes in voxels of the finest level, scaled for each level."""

    base_shapes_vox: Annotated[tuple[Spacing, ...], Field(min_length=1)]
    level_scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    published_rounding: bool = False
    """Half-sizes rounded to even whole voxels, as the published weights were trained."""
    offset_vox: float = 0.0
    """Added to every anchor's centre. Weights trained on index coordinates answer half a voxel low: 0.5 mends it."""


class AugmentConfig(Config):
    """Random changes of a training patch; every ``_p`` is a probability, drawn per patch."""

    flip_p: _Share = 0.0
    """For each axis."""
    flip_axes: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)
    rot90_p: _Share = 0.0
    """A quarter turn or more in the x-y plane."""
    rotate_p: _Share = 0.0
    rotate_deg: NonNegativeFloat = 30.0
    """Up to this angle about each axis."""
    zoom_p: _Share = 0.0
    zoom: _Range = (0.7, 1.4)
    noise_p: _Share = 0.0
    noise_sd: NonNegativeFloat = 0.1
    """The most; each patch draws its own from 0 up to this."""
    blur_p: _Share = 0.0
    blur_sigma_vox: _Range = (0.5, 1.0)
    scale_p: _Share = 0.0
    scale: NonNegativeFloat = 0.25
    """Intensity times 1 ± this."""
    shift_p: _Share = 0.0
    shift: NonNegativeFloat = 0.1
    """Intensity plus or minus this."""
    gamma_p: _Share = 0.0
    gamma: _Range = (0.7, 1.5)


class DetectionLoss(Config):
    """Classification over mined anchors (BCE) and box regression over the positive ones."""

    kind: Literal["detection"] = "detection"
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    smooth_l1_beta: PositiveFloat = 1 / 9
    class_weight: NonNegativeFloat = 1.0
    box_weight: NonNegativeFloat = 1.0
    atss_candidates: PositiveInt = 4
    """Places per level that ATSS (Zhang 2020) considers for an object."""
    atss_center_in_box: bool = False
    anchors_per_patch: PositiveInt = 64
    positive_fraction: _Share = 0.3
    hard_pool: PositiveInt = 20
    """Negatives are drawn from this many times as many of the highest-scored ones."""
    min_negatives: PositiveInt = 16


class SegmentationLoss(Config):
    """Soft Dice plus cross-entropy."""

    kind: Literal["segmentation"] = "segmentation"
    dice_weight: NonNegativeFloat = 1.0
    ce_weight: NonNegativeFloat = 1.0
    squared: bool = False
    """Squared terms in Dice's denominator (Milletari 2016)."""
    batch_dice: bool = False
    """One Dice over the whole batch, not the mean over its patches."""
    background: bool = True
    """Whether background counts in Dice."""
    smooth: PositiveFloat = 1e-5


Loss = Annotated[DetectionLoss | SegmentationLoss, Field(discriminator="kind")]


class OptimConfig(Config):
    """The optimizer, its schedule and the length of training."""

    optimizer: Literal["sgd", "adam", "adamw", "novograd"] = "sgd"
    rate: PositiveFloat
    weight_decay: NonNegativeFloat = 0.0
    momentum: _Share = 0.9
    nesterov: bool = True
    schedule: Literal["steps", "poly", "cosine"] = "steps"
    warmup_epochs: NonNegativeInt = 0
    decay_epochs: tuple[PositiveInt, ...] = ()
    """`steps`: the rate is multiplied by `decay_factor` at each of these epochs, counted from the end
    of the warm-up."""
    decay_factor: PositiveFloat = 0.1
    epochs: PositiveInt
    steps_per_epoch: PositiveInt | None = None
    """None: as many steps as it takes to see `per_tile` patches of every training case on average."""
    batch_size: PositiveInt
    """Patches per step and worker."""
    clip_norm: PositiveFloat | None = None
    """The gradient's norm is cut to this; None leaves it as it is."""
    amp: Literal["off", "bf16", "fp16"] = "bf16"
    ema_decay: _Share | None = None
    channels_last: bool = False
    validate_every: PositiveInt = 5
    """Epochs between validations; the last epoch is always validated."""
    validate_cases: PositiveInt | None = None
    """At most this many validation cases while training; None is all."""


class InferenceConfig(Config):
    """How a scan is covered by windows, and what a window's detection candidates are."""

    window_vox: SizeVox
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25
    whole_windows: bool = False
    """Windows keep their size where the scan is smaller; otherwise they shrink to it."""
    blend: Literal["constant", "gaussian"] = "constant"
    padding: Literal["constant", "replicate"] = "constant"
    """Beyond the end of a scan: `pad_hu` of the patch, or the border voxel again."""
    batch_size: PositiveInt = 1
    mirrors: tuple[tuple[Literal[0, 1, 2], ...], ...] = ()
    """Each window is also answered mirrored on these axes, and the answers are joined: ``[[0], [1], [0, 1]]``."""
    accumulate: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Segmentation: the type in which blended logits wait for the windows that follow."""
    restore: Literal["auto", "labels", "shares"] = "auto"
    """Segmentation: what goes back to the scan's own grid: labels by nearest voxel, or each class's probability,
    interpolated; auto: probabilities for up to 7 classes."""
    plan: Literal["recipe", "fast"] = "recipe"
    """`fast`: fewer windows, larger where the network allows it, in half precision where the device is good at it."""
    candidate_floor: _Share = 0.02
    """Detection: lower scores never become candidates."""
    candidates_per_level: PositiveInt = 1000

    @model_validator(mode="after")
    def _mirrored_once(self) -> InferenceConfig:
        seen = [frozenset(axes) for axes in self.mirrors]
        if not all(seen) or len(set(seen)) < len(seen) or any(len(set(axes)) < len(axes) for axes in self.mirrors):
            raise ValueError(
                f"mirrors must be different sets of axes, none empty, got {list(map(list, self.mirrors))}"
            )
        return self


class DetectionMerge(Config):
    """From the candidates of all windows to a scan's detections; all of it can be swept.

    What one network says of a scan seen one way (as it is, or mirrored) is a view. First the boxes of each view are
    joined over its windows, then the views over networks, mirrors, folds and epochs; or all of them at once.
    """

    kind: Literal["detection"] = "detection"
    score_floor: _Share = 0.02
    min_size_mm: NonNegativeFloat = 0.0
    """Boxes with a shorter side are dropped."""
    method: Literal["nms", "weighted_nms", "wbc"] = "nms"
    """Over a view's windows: suppression, suppression in the order of score times `tile_weight`, or weighted box
    clustering, which averages what overlaps and counts on an answer from every window."""
    tile_iou: _Share = 0.22
    """Two boxes of one class that overlap more are of one object."""
    tile_weight: Literal["none", "linear", "gaussian"] = "linear"
    """How far a box is trusted by its centre's place in its window, where the method asks: less from the middle to
    the corners, as in nnDetection (linear) or the Medical Detection Toolkit (gaussian)."""
    view_candidates: PositiveInt | None = None
    """The best so many of each view are looked at; None is all."""
    view_detections: PositiveInt | None = None
    """The best so many of each view are joined with other views' where those are not pooled; None is all."""
    ensemble_method: Literal["pooled", "nms", "weighted_nms", "wbc"] = "pooled"
    """Over views: all their candidates go through `method` together, or what that leaves of each through another."""
    ensemble_iou: _Share = 0.5
    ensemble_candidates: PositiveInt | None = None
    """The best so many over all views are looked at; None is all."""
    wbc_by_volume: bool = False
    """Larger boxes count more, as in the Medical Detection Toolkit."""
    wbc_missing_weight: NonNegativeFloat = 1.0
    """How much an answer that was expected and is missing lowers the score of a cluster."""
    final_floor: _Share = 0.0
    """Of the score after the last step, which clustering changes."""
    max_detections: PositiveInt = 300


class SegmentationMerge(Config):
    """From blended logits to a label map; all of it can be swept.

    Holes are filled before components are judged, each class by itself, on the grid of the answer.
    """

    kind: Literal["segmentation"] = "segmentation"
    threshold: _Share | None = None
    """A class is where its probability is higher, the most probable one where several are; None: where it is the
    most probable of all classes and background."""
    thresholds: dict[str, _Share] = Field(default_factory=dict)
    """The same for classes by name, in place of `threshold`."""
    min_component_mm3: NonNegativeFloat = 0.0
    """Smaller connected components (26 neighbours) become background."""
    largest_only: Selection = False
    """Of each class, or of those named, all but the largest component become background."""
    fill_holes: Selection = False
    """Background that a class, or one of those named, encloses (6 neighbours) becomes that class."""

    def __hash__(self) -> int:
        # Recipes are keys of caches, and pydantic does not hash what holds a dictionary.
        return hash(self.model_dump_json())


Merge = Annotated[DetectionMerge | SegmentationMerge, Field(discriminator="kind")]


def _resolve_network(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, NetworkConfig):
        return value
    table: Mapping[str, type[NetworkConfig]] = (info.context or {}).get("networks", {})
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in table:
        raise ValueError(f"kind must be one of {', '.join(sorted(table))}, got {kind!r}")
    return table[kind].model_validate(dict(value))


class Recipe(Config):
    """Everything from voxel to score, frozen."""

    name: str
    about: str = ""
    """Where the recipe comes from, in a sentence."""
    grid: GridConfig
    intensity: Intensity
    patch: PatchConfig
    network: Annotated[SerializeAsAny[NetworkConfig], BeforeValidator(_resolve_network)]
    anchors: AnchorConfig | None = None
    loss: Loss
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig
    inference: InferenceConfig
    merge: Merge

    @property
    def task(self) -> TaskName:
        """What the recipe answers."""
        return self.loss.kind

    @property
    def level_strides_vox(self) -> tuple[tuple[int, int, int], ...]:
        """The strides of the levels that a detection's maps lie on, finest first; a segmentation has none."""
        return self.network.level_strides_vox if self.task == "detection" else ()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.loss.kind != self.merge.kind:
            raise ValueError(f"loss.kind and merge.kind must agree, got {self.loss.kind} and {self.merge.kind}")
        if self.task not in self.network.tasks:
            allowed = " or ".join(self.network.tasks)
            raise ValueError(f"network.kind {self.network.kind} is for {allowed}, but loss.kind is {self.loss.kind}")
        if self.task == "detection":
            self._one_scale_per_level()
        stride = self.network.stride_vox
        for field, sides in (
            ("patch.size_vox", self.patch.size_vox),
            ("inference.window_vox", self.inference.window_vox),
        ):
            if any(side % step for side, step in zip(sides, stride, strict=True)):
                raise ValueError(f"{field} must be a multiple of the network's stride {stride}, got {sides}")
        return self

    def _one_scale_per_level(self) -> None:
        if self.anchors is None:
            raise ValueError("anchors are required for detection")
        scales, levels = len(self.anchors.level_scales), len(self.network.level_strides_vox)
        if scales != levels:
            raise ValueError(f"anchors.level_scales must have one entry for each of {levels} levels, got {scales}")


def parse_recipe(
    data: Mapping[str, Any],
    networks: Mapping[str, type[NetworkConfig]],
    *,
    overrides: Sequence[str] = (),
    where: str,
) -> Recipe:
    """The mapping as a recipe, with ``a.b=c`` overrides applied first."""
    place = f"{where} with --set" if overrides else where
    return parse(Recipe, with_overrides(data, overrides), where=place, context={"networks": networks})
