"""A section that a plug-in registers is part of every recipe; what cannot be a section is one clear line."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.recipe import fields
from cxr_compress.recipe.fields import Section, option, provide_choices, provided, register_section
from cxr_compress.recipe.recipe import Recipe


@dataclass(frozen=True)
class EdgeSection(Section):
    """Edges of the blur."""

    kept: tuple[str, ...] = option((), "Edges that are kept.", flag="blur_edges")


@dataclass(frozen=True)
class BlurSection(Section):
    """Blur of training images."""

    radius: int = option(0, "Radius of the blur, pixels.", flag="blur_radius", at_least=0, at_most=9)
    method: str = option("box", "How images are blurred.", flag="blur_method", choices=lambda: ("box", "gauss"))
    edge: EdgeSection = field(default_factory=EdgeSection)

    def check(self) -> None:
        self.require(self.method == "box" or self.radius > 0, "radius", "1 or more with gauss")


@pytest.fixture
def blur():
    register_section("blur", BlurSection)
    yield
    del fields.SECTIONS["blur"]


@pytest.mark.usefixtures("blur")
def test_registered_section_is_part_of_json_and_flags():
    recipe = Recipe.from_dict({"format": 2, "blur": {"radius": 3, "edge": {"kept": ["left"]}}})
    assert recipe.section("blur") == BlurSection(radius=3, edge=EdgeSection(kept=("left",)))
    assert recipe.value("blur_edges") == ("left",)
    assert Recipe.from_json(recipe.to_json()) == recipe
    changed = recipe.with_values(blur_method="gauss", seed=7)
    assert (changed.value("blur_method"), changed.value("blur_radius"), changed.run.seed) == ("gauss", 3, 7)
    assert Recipe().section("blur") == BlurSection()


@pytest.mark.usefixtures("blur")
@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"radius": 10}, r"expected blur.radius \(--blur_radius\) to be in \[0, 9\]; got 10"),
        ({"method": "mean"}, r"expected blur.method \(--blur_method\) to be one of box, gauss; got 'mean'"),
        ({"method": "gauss"}, r"expected blur.radius \(--blur_radius\) to be 1 or more with gauss; got 0"),
        ({"edge": {"keep": []}}, "unknown key 'keep' in section blur.edge of the recipe: did you mean 'kept'"),
    ],
)
def test_registered_section_is_checked_like_the_others(section, message):
    with pytest.raises(CompressionError, match=message):
        Recipe.from_dict({"format": 2, "blur": section})


@pytest.mark.usefixtures("blur")
def test_section_registered_twice_is_one_line():
    with pytest.raises(CompressionError, match=r"a recipe has a section 'blur' already \(BlurSection\): register Edge"):
        register_section("blur", EdgeSection)


def test_section_with_a_flag_that_is_taken_is_one_line():
    @dataclass(frozen=True)
    class SeedSection(Section):
        seed: int = option(0, "Seed of the plug-in.")

    with pytest.raises(CompressionError, match=r"--seed of section 'mine' is the flag of run.seed already"):
        register_section("mine", SeedSection)
    assert "mine" not in fields.SECTIONS


def test_section_field_without_an_option_or_of_a_type_without_a_form_is_one_line():
    @dataclass(frozen=True)
    class PlainSection(Section):
        radius: int = 3

    with pytest.raises(CompressionError, match=r"declare .*PlainSection.radius with option\(default, help\)"):
        register_section("mine", PlainSection)

    @dataclass(frozen=True)
    class ComplexSection(Section):
        radius: complex = option(0j, "Radius.")

    with pytest.raises(CompressionError, match=r"ComplexSection.radius has the type .*complex.*no form for: use bool"):
        register_section("mine", ComplexSection)


def test_section_of_a_plugin_that_is_not_imported_is_one_line():
    with pytest.raises(CompressionError, match=r"unknown section 'blur' in the recipe; .*import the plug-in first"):
        Recipe.from_dict({"format": 2, "blur": {}})
    with pytest.raises(CompressionError, match="unknown section 'blur'"):
        Recipe(plugins={"blur": BlurSection()})


def test_choices_that_a_registry_provides_count_from_then_on(monkeypatch):
    monkeypatch.setattr(fields, "_PROVIDED", {})
    names = provided("criterion")
    assert names() == ()
    provide_choices("criterion", lambda: ("l1", "mine"))
    assert names() == ("l1", "mine")
    assert Recipe().with_values(criterion="mine").removal.criterion == "mine"
    with pytest.raises(CompressionError, match=r"removal.criterion \(--criterion\) to be one of l1, mine; got 'best'"):
        Recipe().with_values(criterion="best")
