"""docs/architecture.md says what the code is."""

import re

import torch
from helpers.commands import REPO
from helpers.models import batch_of, build_model

from fairseq_speedup.transformer import path
from fairseq_speedup.transformer.stages import STAGES

PAGE = (REPO / "docs/architecture.md").read_text()
PACKAGE = REPO / "fairseq_speedup"


def test_every_file_that_the_page_names_is_there():
    named = re.findall(r"`?\b((?:[a-z_]+/)+(?:[a-z_]+\.py)?|[a-z_]+\.py)", PAGE)
    roots = [PACKAGE, REPO, REPO / "docs"]
    assert len(named) > 20
    assert [each for each in named if not any((root / each).exists() for root in roots)] == []


def test_the_stages_are_those_of_the_page_in_their_order():
    drawing = PAGE[PAGE.index("transformer/stages.py:") : PAGE.index("batch.unmerged()")]
    places = [drawing.index(stage.__name__) for stage in STAGES]
    assert places == sorted(places)


def test_nothing_hooks_into_the_path_and_nothing_stays_on_it(pretrained):
    """Of every reduction at once."""
    model = build_model(
        pretrained,
        downsample="conv",
        downsample_factor=2.0,
        frame_pool=2,
        exit_layers="0",
        drop_frames="blank",
        drop_threshold=0.01,
        merge_ratio=0.2,
        head="bilstm",
        head_dim=6,
    ).eval()

    def tensors():
        """Names of tensors on modules and stages that are no weights."""
        encoder = model.w2v_encoder
        owners = [*model.modules(), encoder.transformer, encoder.transformer.layers]
        owners += encoder.stages
        return {
            f"{type(owner).__name__}.{name}"
            for owner in owners
            for name, value in vars(owner).items()
            if isinstance(value, torch.Tensor)
        }

    for module in model.modules():
        assert not module._forward_hooks
        # torch's weight norm is a hook of fairseq's positional convolution
        hooks = [
            each for each in module._forward_pre_hooks.values() if "WeightNorm" not in str(each)
        ]
        assert not hooks
    model(**batch_of([9000, 7000]))
    before = tensors()
    model(**batch_of([12000]))
    assert tensors() == before
    assert before <= {"Conv1d.weight"}, "weight norm's product alone"


def test_one_function_is_the_path_of_every_form(monkeypatch, pretrained):
    from fairseq_speedup.export.model import ExportableModel
    from fairseq_speedup.inference import to_inference_form

    made, batch = [], path.FrameBatch

    def counted(*args, **kwargs):
        made.append(batch(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(path, "FrameBatch", counted)
    model = build_model(pretrained).eval()
    with torch.no_grad():
        model(**batch_of([9000]))
        to_inference_form(model, "fp32")
        model(**batch_of([9000]))
        exported = ExportableModel(build_model(pretrained).eval())
        exported(batch_of([9000])["source"], torch.tensor([9000]))
    assert len(made) == 3
