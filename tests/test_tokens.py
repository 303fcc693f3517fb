import pytest
import torch

from pointadapt.tokens import Tokens


def tokens(pos: bool = True) -> Tokens:
    """Two sequences of one "cls" and three "patch" tokens of two channels, numbered."""
    feat = torch.arange(16.0).view(2, 4, 2)
    return Tokens(feat, (("cls", 1), ("patch", 3)), 100 + feat if pos else None)


def test_parts_are_found_by_name():
    t = tokens()
    assert len(t) == 2 and t.count("patch") == 3 and t.count("prompt") == 0
    assert torch.equal(t.part("patch"), t.feat[:, 1:]) and t.rows("patch") == slice(1, 4)
    with pytest.raises(KeyError):
        t.rows("prompt")


@pytest.mark.parametrize(
    ("where", "layout", "at"),
    [
        ({}, (("cls", 1), ("patch", 3), ("prompt", 2)), 4),
        ({"before": "cls"}, (("prompt", 2), ("cls", 1), ("patch", 3)), 0),
        ({"after": "cls"}, (("cls", 1), ("prompt", 2), ("patch", 3)), 1),
    ],
)
def test_insert_and_drop(where, layout, at):
    t = tokens()
    new = -torch.ones(1, 2, 2)
    longer = t.insert("prompt", new, 5 * new, **where)
    assert longer.layout == layout and longer.rows("prompt") == slice(at, at + 2)
    assert torch.equal(longer.part("prompt"), new.expand(2, 2, 2))
    assert torch.equal(longer.pos[:, at : at + 2], 5 * new.expand(2, 2, 2))
    back = longer.drop("prompt")
    assert torch.equal(back.feat, t.feat) and torch.equal(back.pos, t.pos) and back.layout == t.layout
    assert t.drop("prompt") is t


def test_inserted_tokens_without_position_get_zeros():
    assert tokens().insert("prompt", torch.ones(1, 2, 2)).pos[:, 4:].abs().sum() == 0
    assert tokens(pos=False).insert("prompt", torch.ones(1, 2, 2)).pos is None


def test_more_of_a_name_joins_those_that_are_there():
    t = tokens().insert("prompt", torch.zeros(1, 1, 2), after="cls").insert("prompt", torch.ones(2, 1, 2), after="cls")
    assert t.layout == (("cls", 1), ("prompt", 2), ("patch", 3))
    assert t.part("prompt")[0, :, 0].tolist() == [1, 0]
    with pytest.raises(ValueError, match="does not describe"):  # apart from them
        t.insert("prompt", torch.ones(1, 1, 2))


def test_other_features_in_one_part():
    t = tokens()
    changed = t.with_part("cls", torch.full((2, 1, 2), 7.0))
    assert torch.equal(changed.part("patch"), t.part("patch")) and (changed.part("cls") == 7).all()
    assert t.feat[0, 0, 0] == 0  # the original stays


def test_under_a_mask_nothing_is_inserted():
    with pytest.raises(ValueError, match="mask"):
        tokens().but(mask=torch.zeros(4, 4)).insert("prompt", torch.ones(1, 1, 2))


def test_placed_and_plus():
    t = tokens()
    assert torch.equal(t.placed().feat, t.feat + t.pos)
    bare = tokens(pos=False)
    assert bare.placed() is bare
    summed = t.plus(t.but(extra={"seen": 1}))
    assert torch.equal(summed.feat, 2 * t.feat) and summed.extra == {"seen": 1}


def test_layout_must_describe_the_tokens():
    for layout in ((("cls", 1), ("patch", 2)), (("patch", 2), ("patch", 2))):
        with pytest.raises(ValueError, match="does not describe"):
            Tokens(torch.zeros(1, 4, 2), layout)
