"""tools/deploy_fuse.py's work: a fused checkpoint that is equal, or nothing at all."""

import hashlib
import types

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmseg_repvgg.checkpoint import CheckpointError
from mmseg_repvgg.checkpoint.names import translate
from mmseg_repvgg.deploy import fuse as fuse_module
from mmseg_repvgg.deploy.fuse import fuse_checkpoint
from mmseg_repvgg.models import RepVGGBlock
from mmseg_repvgg.reparam import EquivalenceError, compare
from mmseg_repvgg.reparam.equivalence import Difference
from mmseg_repvgg.reparam.rewrites import default_names
from tests.checkpoint.wrappings import write
from tests.common import TINY, randomise_batchnorms, runner_cfg

# the dilated convs are those of the last two stages; of stride 1 are 1 + 2 + 3 + 1 layers of the
# stages and one conv in each head
ALL = {'branches': 10, 'batchnorm': 6, 'dilation': 4, 'pyramid': 1, 'winograd': 9}


@pytest.fixture
def trained(scenes, tmp_path):
    """A config, its model with the statistics of a trained one, and the checkpoint file."""
    init_default_scope('mmseg')
    cfg = runner_cfg(scenes, tmp_path / 'work')
    model = MODELS.build(cfg.model)
    randomise_batchnorms(model)
    meta = dict(dataset_meta=dict(classes=('a', 'b'), palette=[[1, 2, 3], [4, 5, 6]]), seed=3)
    torch.save(dict(meta=meta, state_dict=model.state_dict()), tmp_path / 'trained.pth')
    return cfg, model, tmp_path / 'trained.pth'


def test_the_written_pair_gives_the_training_forms_logits(trained, tmp_path):
    cfg, model, checkpoint = trained
    report = fuse_checkpoint(cfg, checkpoint, tmp_path / 'out' / 'fused.pth')
    assert report.counts == ALL
    assert report.num_images == 2
    assert 0 < report.on_random.max_rel < 5e-5
    assert 0 < report.on_images.max_rel < 5e-5
    assert report.on_images.argmax_agreement > 0.99
    before = sum(p.numel() for p in model.parameters())
    assert report.parameters_before == before > report.parameters_after
    assert f'parameters: {before:,} -> ' in str(report)

    saved = torch.load(report.checkpoint, weights_only=True)
    assert saved['meta']['dataset_meta']['classes'] == ('a', 'b')
    stamp = saved['meta']['mmseg_repvgg']
    assert stamp['form'] == 'deploy'
    assert stamp['source_sha256'] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    deployed = Config.fromfile(report.config)
    assert not deployed.custom_hooks
    assert 'train_dataloader' not in deployed
    fused = MODELS.build(deployed.model)
    fused.load_state_dict(saved['state_dict'], strict=True)
    assert sum(p.numel() for p in fused.parameters()) == report.parameters_after
    x = torch.randn(1, 3, 77, 91)
    assert compare(model, fused, x).max_rel < 5e-5
    torch.nn.init.zeros_(fused.backbone.stage_2[1].branch_reparam.bias)  # negative control
    assert compare(model, fused, x).max_rel > 1e-3


def test_variants_of_the_block_are_fused_or_refused_with_the_reason(trained, tmp_path):
    cfg, _, checkpoint = trained
    x = torch.randn(1, 3, 77, 91)
    for block, rewrites in (('acb', None), ('relu_in_branches', ['batchnorm'])):
        cfg.model.backbone.block = block
        model = randomise_batchnorms(MODELS.build(cfg.model))
        torch.save(dict(state_dict=model.state_dict()), checkpoint)
        out = tmp_path / f'{block}.pth'
        if rewrites:
            with pytest.raises(ValueError, match=f"block='{block}' cannot be fused: the ReLU"):
                fuse_checkpoint(cfg, checkpoint, out)
            assert not out.exists()
            fuse_checkpoint(cfg, checkpoint, out, rewrites, num_images=0)
        else:
            report = fuse_checkpoint(cfg, checkpoint, out, num_images=0)
            assert report.counts == ALL
        fused = MODELS.build(Config.fromfile(out.with_suffix('.py')).model)
        state = torch.load(out, weights_only=True)['state_dict']
        fused.load_state_dict(state, strict=True)
        assert compare(model, fused, x).max_rel < 5e-5
        torch.nn.init.zeros_(next(p for n, p in fused.named_parameters() if n.endswith('.bias')))
        assert compare(model, fused, x).max_rel > 1e-3  # negative control


def test_a_baseline_without_repvgg_fuses_its_conv_bn(trained, tmp_path):
    cfg, _, _ = trained
    cfg.model.backbone = dict(type='ResNetV1c', depth=18, norm_cfg=dict(type='SyncBN'))
    cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels = 512, 256
    model = MODELS.build(cfg.model)
    randomise_batchnorms(model)
    torch.save(model.state_dict(), tmp_path / 'r18.pth')
    with pytest.raises(ValueError, match="holds no RepVGG block.*leave 'branches' out"):
        fuse_checkpoint(cfg, tmp_path / 'r18.pth', tmp_path / 'f.pth')
    assert not (tmp_path / 'f.pth').exists()
    report = fuse_checkpoint(
        cfg, tmp_path / 'r18.pth', tmp_path / 'f.pth', rewrites=['batchnorm'], num_images=0
    )
    assert report.counts == {'batchnorm': 20 + 2 + 6}  # the stem of V1c has three convs
    assert report.on_images is None
    assert 'not checked' in str(report)


@pytest.mark.parametrize('where', ['fuse', 'config'])
def test_a_mismatch_writes_nothing(trained, tmp_path, monkeypatch, where):
    """Negative control: one tap off in every kernel, or a config that builds another model."""
    cfg, _, checkpoint = trained
    if where == 'fuse':
        right = RepVGGBlock.get_equivalent_kernel_bias

        def wrong(block):
            kernel, bias = right(block)
            return kernel.roll(1, dims=2), bias

        monkeypatch.setattr(RepVGGBlock, 'get_equivalent_kernel_bias', wrong)
        text = 'random input: the rewritten model is not equal'
    else:
        from mmseg_repvgg.deploy import fuse

        right = fuse.deployed_config

        def wrong(model, *args):
            model['backbone']['dilations'] = (1, 1, 2, 2)
            return right(model, *args)

        monkeypatch.setattr(fuse, 'deployed_config', wrong)
        text = 'the fused model built from its config'
    with pytest.raises(EquivalenceError, match=text):
        fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth')
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == {'trained.pth'}


def test_wrong_files_are_named(trained, tmp_path):
    cfg, model, checkpoint = trained
    report = fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth', num_images=0)
    with pytest.raises(CheckpointError, match='is fused already; give the training config'):
        fuse_checkpoint(cfg, report.checkpoint, tmp_path / 'again.pth')
    with pytest.raises(CheckpointError, match='is fused already'):
        fuse_checkpoint(Config.fromfile(report.config), checkpoint, tmp_path / 'again.pth')
    with pytest.raises(ValueError, match='must end in .pth'):
        fuse_checkpoint(cfg, checkpoint, tmp_path / 'out')
    with pytest.raises(ValueError, match='is the training checkpoint itself'):
        fuse_checkpoint(cfg, checkpoint, checkpoint)
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        fuse_checkpoint(cfg, tmp_path / 'nowhere.pth', tmp_path / 'out.pth')
    state = model.state_dict()
    state.pop('backbone.stem.branch_1x1.conv.weight')
    state['extra'] = torch.zeros(1)
    state['decode_head.conv_seg.bias'] = torch.zeros(7)
    torch.save(state, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError) as error:
        fuse_checkpoint(cfg, tmp_path / 'other.pth', tmp_path / 'out.pth')
    for part in (
        '1 missing (backbone.stem.branch_1x1.conv.weight)',
        '1 unexpected (extra)',
        '1 of another shape (decode_head.conv_seg.bias (7,) for (19,))',
    ):
        assert part in str(error.value)
    cfg.model.backbone.arch = 'A0'
    with pytest.raises(CheckpointError, match="Expected: RepVGG A0.*weights of the model's arch"):
        fuse_checkpoint(cfg, checkpoint, tmp_path / 'out.pth')


def test_mmsegs_own_api_serves_the_fused_pair(trained, tmp_path, scenes):
    from mmseg.apis import inference_model, init_model

    cfg, model, checkpoint = trained
    cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline  # where mmseg's API looks
    report = fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth', num_images=0)
    fused = init_model(str(report.config), str(report.checkpoint), device='cpu')
    assert fused.dataset_meta['classes'] == ('a', 'b')
    assert compare(model, fused, torch.randn(1, 3, 64, 64)).max_rel < 5e-5
    image = next((scenes / 'leftImg8bit' / 'val').glob('*/*.png'))
    assert inference_model(fused, str(image)).pred_sem_seg.data.shape == (1, 64, 128)


@pytest.mark.parametrize('form', ['model', 'safetensors'])
@pytest.mark.parametrize('scheme', ['official', 'timm'])
def test_a_classifiers_weights_from_other_code_fuse_as_they_come(tmp_path, form, scheme):
    init_default_scope('mmpretrain')
    head = dict(type='LinearClsHead', in_channels=64, num_classes=3)
    backbone = dict(type='DilatedRepVGG', arch=TINY, out_indices=(3,))
    pooling = dict(type='GlobalAveragePooling')
    settings = dict(type='ImageClassifier', backbone=backbone, neck=pooling, head=head)
    cfg = Config(dict(default_scope='mmpretrain', model=settings))
    model = randomise_batchnorms(MODELS.build(cfg.model))
    file = write(form, translate(model.state_dict(), scheme), tmp_path)
    report = fuse_checkpoint(cfg, file, tmp_path / 'fused.pth')
    assert report.counts['branches'] == 10
    fused = MODELS.build(Config.fromfile(report.config).model)
    fused.load_state_dict(torch.load(report.checkpoint, weights_only=True)['state_dict'])
    assert compare(model, fused, torch.randn(1, 3, 64, 64)).max_rel < 5e-5


def test_a_data_preprocessor_at_the_top_goes_into_the_model(trained, tmp_path):
    """As mmengine's Runner does it."""
    cfg, _, checkpoint = trained
    cfg.model.data_preprocessor.update(mean=[100.0] * 3, std=[50.0] * 3)
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    report = fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth', num_images=1)
    assert report.num_images == 1
    deployed = Config.fromfile(report.config)
    assert 'data_preprocessor' not in deployed
    assert deployed.model.data_preprocessor.mean == [100.0] * 3


def test_types_that_are_classes_are_written_as_names(trained, tmp_path):
    """As in mmengine's Python configs, where a type is an imported class."""
    from mmseg.datasets import CityscapesDataset
    from mmseg.models import EncoderDecoder, PSPHead, SegDataPreProcessor

    from mmseg_repvgg.engine.deploy_hook import RepVGGDeployHook
    from mmseg_repvgg.models import DilatedRepVGG

    cfg, model, checkpoint = trained
    cfg.model.type, cfg.model.data_preprocessor.type = EncoderDecoder, SegDataPreProcessor
    cfg.model.backbone.type, cfg.model.decode_head.type = DilatedRepVGG, PSPHead
    cfg.test_dataloader.dataset.type = CityscapesDataset
    cfg.custom_hooks = [dict(type=RepVGGDeployHook)]
    report = fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth', num_images=1)
    deployed = Config.fromfile(report.config)
    assert deployed.custom_hooks == []
    assert deployed.model.of.endswith('.EncoderDecoder')
    fused = MODELS.build(deployed.model)
    fused.load_state_dict(torch.load(report.checkpoint, weights_only=True)['state_dict'])
    assert type(fused) is EncoderDecoder
    assert compare(model, fused, torch.randn(1, 3, 77, 91)).max_rel < 5e-5


def test_a_list_of_initial_weights_is_replaced_by_the_checkpoint(trained, tmp_path):
    cfg, _, checkpoint = trained
    cfg.model.backbone.init_cfg = [
        dict(type='Kaiming', layer='Conv2d'),
        dict(type='Pretrained', checkpoint='nowhere.pth'),
    ]
    report = fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth', num_images=0)
    assert 'nowhere' not in report.config.read_text()


def test_the_first_view_of_a_test_time_augmentation_is_compared(trained, tmp_path):
    cfg, _, checkpoint = trained
    flips = [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)]
    views = dict(type='TestTimeAug', transforms=[flips, [dict(type='PackSegInputs')]])
    cfg.test_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), views]
    report = fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth', num_images=1)
    assert report.num_images == 1


def without_root(dataset):
    """The same images by the path of their folder."""
    folder = f'{dataset["data_root"]}/leftImg8bit/val'
    loading = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    return dict(dataset, data_root=None, data_prefix=dict(img_path=folder), pipeline=loading)


@pytest.mark.parametrize(
    'change',
    [lambda d: dict(type='ConcatDataset', datasets=[d, d]), without_root],
    ids=['ConcatDataset', 'without data_root'],
)
def test_images_are_found_wherever_the_config_names_them(trained, tmp_path, change):
    cfg, _, checkpoint = trained
    cfg.test_dataloader.dataset = change(cfg.test_dataloader.dataset.to_dict())
    report = fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth', num_images=2)
    assert report.num_images == 2
    assert 'on 2 images: largest difference' in str(report)


@pytest.mark.parametrize(
    'missing', [dict(data_root='nowhere'), dict(data_root=None, data_prefix=dict(img_path='no'))]
)
def test_data_that_are_not_there_are_not_needed(trained, tmp_path, missing):
    cfg, _, checkpoint = trained
    cfg.test_dataloader.dataset.update(missing)
    report = fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth')
    assert report.on_images is None
    assert 'on images: not checked (no data of test_dataloader' in str(report)


def test_infinity_in_a_config_is_written_as_python_reads_it(trained, tmp_path):
    cfg, _, checkpoint = trained
    limits = [float('inf'), (float('-inf'), 0.5)]
    cfg.custom_hooks = [dict(type='EarlyStoppingHook', monitor='mIoU', limits=limits)]
    report = fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth', num_images=0)
    assert Config.fromfile(report.config).custom_hooks[0].limits == limits


def test_another_device_chooses_the_rewrites_and_compares_and_the_cpu_writes(
    trained, tmp_path, monkeypatch
):
    """The meta device stands in for a GPU: every machine has it, but its tensors have no values."""
    cfg, model, checkpoint = trained
    seen = []

    def record(before, after, images):
        tensors = [*before.state_dict().values(), *after.state_dict().values(), images]
        seen.append({tensor.device.type for tensor in tensors})
        return Difference(0, 0, 1) if seen[-1] == {'meta'} else compare(before, after, images)

    monkeypatch.setattr(fuse_module, 'compare', record)
    report = fuse_checkpoint(cfg, checkpoint, tmp_path / 'f.pth', num_images=1, device='meta')
    # random input and an image there; the written files are loaded on the CPU
    assert seen == [{'meta'}, {'meta'}, {'cpu'}]
    assert report.counts == {'branches': 10, 'batchnorm': 6}  # the paper's two
    assert Config.fromfile(report.config).model.rewrites == ['branches', 'batchnorm']
    state = torch.load(report.checkpoint, weights_only=True)['state_dict']
    assert {tensor.device.type for tensor in state.values()} == {'cpu'}
    fused = MODELS.build(Config.fromfile(report.config).model)
    fused.load_state_dict(state)
    assert compare(model, fused, torch.randn(1, 3, 64, 64)).max_rel < 5e-5
    assert {p.device.type for p in model.parameters()} == {'cpu'}


@pytest.mark.parametrize('device', ['cuda', 'mps'])
def test_the_default_rewrites_on_a_gpu_are_the_papers(device):
    class Stub(torch.nn.Module):
        def parameters(self):
            return iter([types.SimpleNamespace(device=torch.device(device))])

    assert default_names(Stub(), compared=True) == ('branches', 'batchnorm')
    assert default_names(torch.nn.Conv2d(1, 1, 1), compared=True) == tuple(ALL)


@pytest.mark.parametrize('device', ['cuda', 'mps', 'cuda:7', 'tpu', ''])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    trained, tmp_path, monkeypatch, device
):
    cfg, _, checkpoint = trained
    real = torch.empty

    def without_gpu(*args, **options):
        if str(options.get('device', 'cpu')).startswith(('cuda', 'mps')):
            raise AssertionError('Torch not compiled with CUDA enabled')
        return real(*args, **options)

    monkeypatch.setattr(torch, 'empty', without_gpu)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    with pytest.raises(ValueError, match=rf"^device='{device}': PyTorch \S+ has cpu on this mac"):
        fuse_checkpoint(cfg, checkpoint, tmp_path / 'f.pth', device=device)
    assert not (tmp_path / 'f.pth').exists()
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(ValueError, match='has cpu, cuda:0, cuda:1 on this machine'):
        fuse_checkpoint(cfg, checkpoint, tmp_path / 'f.pth', device='tpu')
