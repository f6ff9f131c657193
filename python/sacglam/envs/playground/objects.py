"""What can lie in a scene: the catalogue of types, and an object's colour, type and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sacglam.envs.near import hint
from sacglam.errors import ConfigError

WATER = "water"
FURNITURE = "furniture"
PLANT = "plant"
HERBIVORE = "herbivore"
CARNIVORE = "carnivore"

#: Category -> what makes its young ones grow. What is missing here never grows.
FOOD = {PLANT: WATER, HERBIVORE: PLANT, CARNIVORE: HERBIVORE}

#: Category -> its types. Water is a category of its own, with one type.
CATALOGUE: dict[str, tuple[str, ...]] = {
    WATER: ("water",),
    FURNITURE: ("door", "chair", "desk", "lamp", "table", "cupboard", "sofa", "bed", "shelf"),
    PLANT: (
        "carrot",
        "potato",
        "beet",
        "berry",
        "pea",
        "tomato",
        "onion",
        "lettuce",
        "spinach",
    ),
    HERBIVORE: (
        "pig",
        "cow",
        "sheep",
        "goat",
        "rabbit",
        "deer",
        "elephant",
        "giraffe",
        "rhinoceros",
        "bison",
    ),
    CARNIVORE: (
        "fox",
        "bobcat",
        "coyote",
        "wolf",
        "jackal",
        "hyena",
        "lion",
        "grizzly",
        "shark",
        "tiger",
    ),
}

#: Big animals need two foods at once to grow.
BIG = frozenset({"elephant", "giraffe", "rhinoceros", "bison", "lion", "grizzly", "shark", "tiger"})

CATEGORY_OF = {name: category for category, names in CATALOGUE.items() for name in names}


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """What never changes about an object. Equal specs are interchangeable."""

    colour: str  # "" where the scene has no colours
    type: str
    category: str
    need: int  # foods needed at once to grow; 0: it does not grow
    text: str  # its text once grown, or always where it does not grow: "red lion"
    young: str  # its text before: "baby red lion", "red potato seed"


def make_spec(colour: str, type_name: str) -> ObjectSpec:
    """The spec of a type of the catalogue in a colour ("" for none)."""
    category = CATEGORY_OF[type_name]
    text = f"{colour} {type_name}" if colour else type_name
    if category == PLANT:
        young = f"{text} seed"
    elif category in FOOD:
        young = f"baby {text}"
    else:
        young = text
    need = 0 if category not in FOOD else 2 if type_name in BIG else 1
    return ObjectSpec(colour, type_name, category, need, text, young)


def make_specs(colours: Sequence[str], types: Sequence[str]) -> tuple[ObjectSpec, ...]:
    """Every object that a scene with these colours and types may hold, in a fixed order.

    Raises:
        ConfigError: a type is not in the catalogue, or a name is given twice.
    """
    for what, names in (("colour", colours), ("type", types)):
        if len(set(names)) != len(names):
            raise ConfigError(f"a {what} is given twice in {list(names)}; give each one once")
    for name in types:
        if name not in CATEGORY_OF:
            raise ConfigError(f"unknown object type {name!r}; {hint(name, list(CATEGORY_OF))}")
    for colour in colours:
        if not colour.isalpha() or colour in CATEGORY_OF or colour in ("any", "baby", "seed"):
            raise ConfigError(
                f"{colour!r} cannot be a colour: give one word of letters that is no object's name"
            )
    return tuple(make_spec(colour, name) for name in types for colour in (colours or ("",)))
