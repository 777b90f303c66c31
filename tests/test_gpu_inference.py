"""The inference form of GPUs: its numbers, on a CPU and, where there is one, on a GPU."""

import dataclasses

import pytest
import torch
from helpers.models import FRONT_ENDS, batch_of, build_model, write_four_layers
from helpers.reductions import REDUCTIONS, name_of

pytest.importorskip("transformers")
from public_checkpoints import FORMS, reference, write_form

from fairseq_speedup.inference import form as forms
from fairseq_speedup.inference import to_inference_form
from fairseq_speedup.inference.captured import LONGEST, rounded
from fairseq_speedup.inference.linear import LINEARS

COUNTS = [9000, 6000, 7777]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Captures:
    """Stands for CUDA graphs: remembers what was captured, runs it as it is."""

    def __init__(self, error: str | None = None):
        self.shapes = []
        self.error = error

    def __call__(self, function, inputs, pool):
        self.shapes.append(tuple(inputs[0].shape))
        if self.error is not None:
            raise RuntimeError(self.error)
        return function


@pytest.fixture(scope="module", params=FRONT_ENDS)
def four_layers(tmp_path_factory, request):
    return write_four_layers(tmp_path_factory.mktemp(request.param) / "four.pt", request.param)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """CPUs get the form of GPUs."""
    monkeypatch.setattr(forms, "is_on_cpu", lambda model: False)


def pair(path, capture=None, **options):
    """A model, and the same in the form of GPUs."""
    model, form = (build_model(path, **options).eval() for _ in range(2))
    report = to_inference_form(form, "fp32")
    captured = form.w2v_encoder.captured
    assert (captured is None) == report["graphs"].startswith("none"), report
    if captured is not None:
        captured.graphs.capture = capture or Captures()
    return model, form


@torch.no_grad()
def valid(model, net_input):
    """The logits of each utterance, without padding."""
    output = model(**net_input)
    logits, mask = model.get_logits(output), output["padding_mask"]
    lengths = (~mask).sum(dim=1) if mask is not None else [len(logits)] * logits.size(1)
    return [logits[:length, index] for index, length in enumerate(lengths)]


def assert_same(model, form, net_input, atol=1e-4, rtol=1e-4):
    for ours, theirs in zip(valid(form, net_input), valid(model, net_input), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), atol=atol, rtol=rtol)


@pytest.mark.parametrize("options", [{}, {"padding": "stock"}, *REDUCTIONS.values()], ids=name_of)
def test_it_gives_the_models_numbers(four_layers, as_on_a_gpu, options):
    model, form = pair(four_layers, **options)
    for counts in ([7777], COUNTS, [7000], [9000, 8000, 8500]):
        assert_same(model, form, batch_of(counts))


@pytest.mark.parametrize("family", list(FORMS))
def test_it_gives_every_familys_numbers(tmp_path, as_on_a_gpu, family):
    write_form(tmp_path / "public.pt", family, reference(family))
    for padding in ("masked", "stock"):
        options = {"normalize": FORMS[family][2], "padding": padding}
        model, form = pair(tmp_path / "public.pt", **options)
        assert_same(model, form, batch_of(COUNTS))
        assert_same(model, form, batch_of([6000]))


def test_a_shape_is_captured_when_it_comes_again(four_layers, as_on_a_gpu):
    capture = Captures()
    model, form = pair(four_layers, capture)
    for counts, captured in (
        ([7777], 0),
        ([7000], 1),  # the same, rounded up
        (COUNTS, 1),
        ([8500, 9000, 8800], 2),
        ([30000], 2),
    ):
        assert_same(model, form, batch_of(counts))
        assert len(capture.shapes) == captured
    assert capture.shapes == [(1, rounded(7777)), (3, rounded(9000))]
    assert form.w2v_encoder.captured.graphs.note is None


def test_each_speed_has_graphs_of_its_own(four_layers, as_on_a_gpu):
    capture = Captures()
    options = {"downsample": "average", "downsample_factors": [1.0, 2.0]}
    model, form = pair(four_layers, capture, **options)
    for factor in (1, 2, 2, 1):
        for each in (model, form):
            speeds = each.w2v_encoder.speeds
            speeds.default = dataclasses.replace(speeds.default, factor=float(factor))
        assert_same(model, form, batch_of([9000]))
    assert len(capture.shapes) == 2


@pytest.mark.parametrize(
    ("error", "note"), [("no capture here\nmore", "no capture here"), ("", "RuntimeError")]
)
def test_what_cannot_be_captured_runs_as_it_is(four_layers, as_on_a_gpu, error, note):
    capture = Captures(error)
    model, form = (build_model(four_layers).eval() for _ in range(2))
    report = to_inference_form(form, "fp32")
    form.w2v_encoder.captured.graphs.capture = capture
    for _ in range(3):
        assert_same(model, form, batch_of(COUNTS))
    assert form.w2v_encoder.captured.graphs.note == f"not captured: {note}"
    assert report["graphs"] == f"none: not captured: {note}"
    assert len(capture.shapes) == 1


def test_a_shape_without_memory_for_a_graph_leaves_the_others_theirs(
    four_layers, as_on_a_gpu, caplog
):
    capture = Captures()

    def in_little_memory(function, inputs, pool):
        capture(function, inputs, pool)
        try:
            if len(inputs[0]) == 3:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        finally:  # as a capture that is ended
            if inputs[0].size(1) > 40000:
                raise RuntimeError("capture was invalidated")
        return function

    model, form = (build_model(four_layers).eval() for _ in range(2))
    report = to_inference_form(form, "fp32")
    graphs = form.w2v_encoder.captured.graphs
    graphs.capture = in_little_memory
    for counts in ([9000], COUNTS, [50000, 40000, 45000]):
        for _ in range(3):
            assert_same(model, form, batch_of(counts))
    assert len(capture.shapes) == 3  # none of them again
    assert graphs.note is None and len(graphs.too_large) == 2
    assert [graph is not None for graph in graphs.graphs.values()] == [True]
    assert report["graphs"] == "CUDA graphs, but none of 2 shapes that found no memory"
    assert caplog.text.count("no memory for a CUDA graph") == 1


def test_lengths_are_rounded_by_an_eighth_at_most():
    for num_samples in (1, 400, 7999, 8000, 16001, 100_000, 131_072, LONGEST):
        more = rounded(num_samples) - num_samples
        assert 0 <= more < max(8000, num_samples / 8)
    assert len({rounded(n) for n in range(1, LONGEST, 100)}) < 50


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("options", [{}, {"padding": "stock"}, *REDUCTIONS.values()], ids=name_of)
def test_it_asks_its_device_for_no_value(four_layers, name, options):
    """A device that has none to give: torch's for shapes, which, as a GPU, also minds tensors that
    lie elsewhere."""
    if {"prune_target", "frontend"} & set(options):
        pytest.skip("gates are cut by their values before; filterbanks switch an autocast off")
    model = build_model(four_layers, **options).eval().to("meta")
    report = to_inference_form(model, name)
    captured = model.w2v_encoder.captured
    if captured is None:
        assert {"exit_layers", "merge_ratio", "head"} & set(options), report
        return
    lengths = torch.zeros(3, dtype=torch.long, device="meta")
    with torch.no_grad():
        logits = captured.run(torch.zeros(3, 9000, device="meta"), lengths)
    assert logits.device.type == "meta"
    assert logits.dtype == LINEARS[name].dtype


@needs_gpu
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("options", [{}, {"padding": "stock"}, *REDUCTIONS.values()], ids=name_of)
def test_on_a_gpu(four_layers, name, options):
    model, form = (build_model(four_layers, **options).eval().cuda() for _ in range(2))
    to_inference_form(form, name)
    captured = form.w2v_encoder.captured
    # a GPU's convolutions in fp32 are of TF32, unless told otherwise
    tolerance = {"atol": 5e-3 if name == "fp32" else 0.3, "rtol": 1e-2}
    for counts in ([7777], [7000], COUNTS, [8500, 9000, 8800], [30000], COUNTS, [7777]):
        net_input = {k: v if v is None else v.cuda() for k, v in batch_of(counts).items()}
        if name != "fp32" and {"merge_ratio", "drop_frames"} & set(options):
            # of frames nearly as alike, or blanks nearly as sure, rounding chooses others
            for ours, theirs in zip(valid(form, net_input), valid(model, net_input), strict=True):
                assert ours.shape == theirs.shape and ours.isfinite().all()
            continue
        assert_same(model, form, net_input, **tolerance)
    if captured is not None:
        assert captured.graphs.note is None
        assert sum(graph is not None for graph in captured.graphs.graphs.values()) >= 2
