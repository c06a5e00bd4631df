"""The table of architectures against the paper's printed numbers."""

import pytest

from mmseg_repvgg.models.arch import ARCHS, get_arch

# stage1..stage5 by hand from Table 2 (widths) and Table 3 (a and b)
WIDTHS = {
    'A0': (48, 48, 96, 192, 1280),
    'A1': (64, 64, 128, 256, 1280),
    'A2': (64, 96, 192, 384, 1408),
    'B0': (64, 64, 128, 256, 1280),
    'B1': (64, 128, 256, 512, 2048),
    'B2': (64, 160, 320, 640, 2560),
    'B3': (64, 192, 384, 768, 2560),
    'D2se': (64, 160, 320, 640, 2560),
    'L2pse': (64, 160, 320, 640, 2560),
}


def test_the_table_holds_the_fifteen_models():
    names = 'A0 A1 A2 B0 B1 B1g2 B1g4 B2 B2g2 B2g4 B3 B3g2 B3g4 D2se L2pse'
    assert list(ARCHS) == names.split()


@pytest.mark.parametrize('name', ARCHS)
def test_widths_and_depths_are_those_of_tables_2_and_3(name):
    arch = ARCHS[name]
    assert arch.widths == WIDTHS[name.replace('g2', '').replace('g4', '')]
    depths = {'A': (2, 4, 14, 1), 'B': (4, 6, 16, 1), 'D': (8, 14, 24, 1), 'L': (8, 14, 24, 1)}
    assert arch.num_blocks == depths[name[0]]
    assert arch.source


@pytest.mark.parametrize('name', ['B1g2', 'B1g4', 'B2g2', 'B2g4', 'B3g2', 'B3g4'])
def test_groupwise_layers_are_the_3rd_to_the_27th(name):
    arch = ARCHS[name]
    numbers = [i + 1 for i in range(28) if arch.groups(i) > 1]  # the paper counts from 1
    assert numbers == [3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27]
    assert {arch.groups(i) for i in range(28)} == {1, int(name[-1])}


def test_a_custom_row_is_accepted_and_wrong_ones_name_the_mistake():
    arch = get_arch(dict(num_blocks=[1, 2], width_factor=[0.5, 1], group_layer_map={2: 2}))
    assert arch.widths == (32, 32, 128)
    assert [arch.groups(i) for i in range(4)] == [1, 1, 2, 1]
    with pytest.raises(ValueError, match="unknown RepVGG arch 'B9'; choose from A0, A1"):
        get_arch('B9')
    with pytest.raises(ValueError, match=r"unknown: \['depth'\], missing: \['num_blocks'\]"):
        get_arch(dict(depth=3, width_factor=[1]))
    with pytest.raises(ValueError, match='one value per stage'):
        get_arch(dict(num_blocks=[1, 2], width_factor=[1]))
    with pytest.raises(
        ValueError, match='layer 4 with 2 groups; the layers after the stem are 1..3'
    ):
        get_arch(dict(num_blocks=[1, 2], width_factor=[1, 1], group_layer_map={4: 2}))
    with pytest.raises(ValueError, match='must be positive'):
        get_arch(dict(num_blocks=[0], width_factor=[1]))
    for se_cfg in (dict(ratio=0), dict(after_act=1), dict(after=True)):
        with pytest.raises(ValueError, match='takes ratio and divisor, .* and after_act, True or'):
            get_arch(dict(num_blocks=[1], width_factor=[1], se_cfg=se_cfg))
    with pytest.raises(ValueError, match='not int'):
        get_arch(3)
