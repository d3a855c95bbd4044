"""From a class's name to coded concepts of SNOMED CT, as DICOM's own tables give them.

A name that is not surely one of those concepts gets a private code (99VOXRAY) with the name as its meaning: a
coarser code may stand (a rib for the fourth rib on the left), a wrong one never. The codes come from pydicom's copy
of DICOM's context groups; here stands only which keyword a name means.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

PRIVATE_SCHEME = "99VOXRAY"
_MEANING_LENGTH = 64
_VALUE_LENGTH = 16

ANATOMY: Code = codes.SCT.AnatomicalStructure
ABNORMALITY: Code = codes.SCT.MorphologicallyAbnormalStructure
UNSORTED = Code("CLASS", PRIVATE_SCHEME, "Class of a trained model")
_SIDES: Mapping[str, Code] = {"left": codes.SCT.Left, "right": codes.SCT.Right}

_ORGANS = {
    "spleen": "Spleen",
    "kidney": "Kidney",
    "gallbladder": "Gallbladder",
    "liver": "Liver",
    "stomach": "Stomach",
    "pancreas": "Pancreas",
    "adrenal_gland": "AdrenalGland",
    "aorta": "Aorta",
    "inferior_vena_cava": "InferiorVenaCava",
    "superior_vena_cava": "SuperiorVenaCava",
    "lung": "Lung",
    "lung_upper_lobe": "UpperLobeOfLung",
    "lung_lower_lobe": "LowerLobeOfLung",
    "esophagus": "Esophagus",
    "oesophagus": "Esophagus",
    "trachea": "Trachea",
    "heart": "Heart",
    "heart_atrium_left": "LeftAtrium",
    "heart_atrium_right": "RightAtrium",
    "heart_ventricle_left": "LeftVentricle",
    "heart_ventricle_right": "RightVentricle",
    "atrial_appendage_left": "LeftAuricularAppendage",
    "pulmonary_artery": "PulmonaryArtery",
    "pulmonary_vein": "PulmonaryVein",
    "brachiocephalic_trunk": "BrachiocephalicTrunk",
    "brachiocephalic_vein": "BrachiocephalicVein",
    "subclavian_artery_left": "LeftSubclavianArtery",
    "subclavian_artery_right": "RightSubclavianArtery",
    "common_carotid_artery_left": "LeftCommonCarotidArtery",
    "common_carotid_artery_right": "RightCommonCarotidArtery",
    "iliac_artery": "IliacArtery",
    "iliac_vena": "IliacVein",
    "brain": "Brain",
    "spinal_cord": "SpinalCord",
    "thyroid_gland": "Thyroid",
    "small_bowel": "SmallIntestine",
    "duodenum": "Duodenum",
    "colon": "Colon",
    "urinary_bladder": "Bladder",
    "prostate": "Prostate",
    "face": "Face",
    "skull": "Skull",
    "sternum": "Sternum",
    "costal_cartilages": "CostalCartilage",
    "spine": "Spine",
    "rib": "Rib",
    "ribs": "Rib",
    "humerus": "Humerus",
    "scapula": "Scapula",
    "clavicula": "Clavicle",
    "clavicle": "Clavicle",
    "femur": "Femur",
    "sacrum": "Sacrum",
    **{f"vertebrae_{letter}{number}".lower(): f"{letter}{number}Vertebra"
       for letter, count in (("C", 7), ("T", 12), ("L", 5)) for number in range(1, count + 1)},
}  # fmt: skip
_UNCODED_ORGANS = {
    "portal_vein_and_splenic_vein",
    "heart_myocardium",
    "hip",
    "vertebrae_s1",
    "gluteus_maximus",
    "gluteus_medius",
    "gluteus_minimus",
    "autochthon",
    "iliopsoas",
}
"""Anatomy that DICOM's tables have no concept for, or only one that means something else (Hip is the region)."""

_LUNG_DATASETS = ("luna16", "lidc")


@dataclass(frozen=True)
class Concept:
    """What a class is: its category and type, which side, and for a finding the organ that it lies in."""

    category: Code
    type: Code
    side: Code | None = None
    """Of the type, or of the site where there is one."""
    site: Code | None = None

    @property
    def is_anatomy(self) -> bool:
        """Whether the class is a part of the body, not something found in it."""
        return bool(self.category == ANATOMY)


def concept_of(name: str, *, dataset: str = "") -> Concept:
    """The concept of a class; `dataset` is what the model learnt from, and says where its nodules are."""
    key = name.strip().lower().replace(" ", "_").replace("-", "_")
    if key == "lung_nodule" or (key == "nodule" and dataset.lower().startswith(_LUNG_DATASETS)):
        return Concept(ABNORMALITY, codes.SCT.Nodule, site=codes.SCT.Lung)
    if key in _FINDINGS:
        return _FINDINGS[key]
    key, side = _without_side(key)
    if key == "lung_middle_lobe" and side == _SIDES["right"]:
        return Concept(ANATOMY, codes.SCT.MiddleLobeOfRightLung)
    if key == "kidney_cyst":
        return Concept(ABNORMALITY, codes.SCT.Cyst, side=side, site=codes.SCT.Kidney)
    if key in _ORGANS:
        return Concept(ANATOMY, getattr(codes.SCT, _ORGANS[key]), side=side)
    return Concept(ANATOMY if key in _UNCODED_ORGANS else UNSORTED, private_code(name))


def private_code(name: str) -> Code:
    """A code of voxray's own scheme that means the name and nothing else."""
    plain = name.isascii() and name.isprintable() and "\\" not in name and 0 < len(name) <= _VALUE_LENGTH
    value = name if plain else hashlib.sha256(name.encode()).hexdigest()[:_VALUE_LENGTH]
    return Code(value, PRIVATE_SCHEME, shown(name))


def shown(name: str, length: int = _MEANING_LENGTH) -> str:
    """The name as a DICOM text holds it: no backslash or control character, and cut to the length."""
    clean = "".join(letter if letter.isprintable() and letter != "\\" else " " for letter in name)
    return clean.strip()[:length] or "unnamed"


def _without_side(key: str) -> tuple[str, Code | None]:
    """The name without left or right in it, unless the pair has a concept of its own; ribs lose their number."""
    if key in _ORGANS:
        return key, None
    words = key.split("_")
    sides = [word for word in words if word in _SIDES]
    rest = [word for word in words if word not in _SIDES]
    if len(sides) != 1 or not rest:
        return key, None
    if rest[0] == "rib" and len(rest) == 2 and rest[1].isdigit():
        rest = rest[:1]
    return "_".join(rest), _SIDES[sides[0]]


_FINDINGS: Mapping[str, Concept] = MappingProxyType(
    {
        "nodule": Concept(ABNORMALITY, codes.SCT.Nodule),
        "lesion": Concept(ABNORMALITY, codes.SCT.Lesion),
        "cyst": Concept(ABNORMALITY, codes.SCT.Cyst),
    }
)
