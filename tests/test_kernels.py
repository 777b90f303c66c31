"""The forms' kernels: C and torch's operators give the same."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers.models import build_model, write_pretrained
from helpers.processes import run_forked
from torch import nn
from torch.testing import assert_close

from fairseq_speedup.inference import kernels, to_inference_form
from fairseq_speedup.inference.kernels.attention import attend_in_c, can_attend
from fairseq_speedup.inference.kernels.rows import (
    Levels,
    NormInC,
    Sums,
    convolve_gelu,
    rescale,
    rescale_add,
    rescale_add_normalise,
    rescale_gelu_to_levels,
    rows_to_levels,
)
from fairseq_speedup.inference.linear import cpu_has
from fairseq_speedup.transformer.attention import attend

LOWEST = -0.17
LEVELS = {
    "both sides, bytes": Levels(127, 128.5, None, torch.uint8),
    "both sides, floats": Levels(90, 0.0, None, torch.float32),
    "from a lowest, bytes": Levels(255, 0.5, LOWEST, torch.uint8),
    "from a lowest, floats": Levels(181, 0.0, LOWEST, torch.float32),
}
SIZES = [(1, 1), (3, 7), (50, 65), (9, 512), (40, 3072)]  # the last with a thread each


@pytest.fixture(params=[1, 2])
def threads(request):
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def library() -> Path:
    if kernels.LIBRARY is None:
        pytest.skip("nothing was compiled")
    return Path(kernels.LIBRARY._name)


@pytest.fixture
def by_both(monkeypatch, threads, library):
    """``by_both(function)``: what it gives by C and what by torch's operators."""

    def call(function):
        by_c = function()
        with monkeypatch.context() as without:
            without.setattr(kernels, "LIBRARY", None)
            return by_c, function()

    return call


def sums_of(size):
    """As a product gives them, the same each time: C takes their place."""
    torch.manual_seed(0)
    num_rows, width = size
    spans = torch.rand(num_rows) + 0.1
    return Sums(torch.randn(size) * 1000, spans, 1 / 500, torch.randn(width))


def norm_of(width):
    norm = nn.LayerNorm(width).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def assert_same_levels(ours, theirs, num_rows):
    assert_close(ours.spans, theirs.spans)
    ours, theirs = (each.levels[:num_rows] for each in (ours, theirs))
    assert ours.dtype == theirs.dtype
    # another order of operations may round another way
    difference = (ours.float() - theirs.float()).abs()
    assert difference.max() <= 1 and (difference > 1e-3).float().mean() < 1e-3


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rows_become_the_same_levels(by_both, levels, size):
    torch.manual_seed(0)
    rows = torch.randn(size).clamp(min=LOWEST)
    num_rows = len(rows) + 5
    ours, theirs = by_both(lambda: rows_to_levels(rows, levels, num_rows))
    assert ours.levels.shape == theirs.levels.shape == (num_rows, size[1])
    assert_same_levels(ours, theirs, len(rows))


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_the_largest_number_of_a_row_has_the_highest_level(levels):
    """Whatever compiled it, and of rows of nothing too."""
    rows = torch.tensor([[3.0, LOWEST, 0.0], [1e-30, 0.0, 0.0], [0.0, 0.0, 0.0]])
    made = rows_to_levels(rows, levels, 3).levels.float()
    rounding = 0.5 if levels.dtype == torch.uint8 else 0.0  # is cut off
    highest, zero = levels.count + levels.offset - rounding, levels.offset - rounding
    if levels.lowest is None:
        assert_close(made[0, 0].item(), highest)
        assert_close(made[1:], torch.full((2, 3), zero))
    else:
        assert_close(made[0, :2], torch.tensor([highest, zero]), atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_rows_may_overlap(by_both, levels):
    windows = torch.randn(1000).clamp(min=LOWEST).as_strided((20, 96), (32, 1))
    assert_same_levels(*by_both(lambda: rows_to_levels(windows, levels, 20)), 20)
    turned = torch.randn(30, 20).clamp(min=LOWEST).T
    assert_same_levels(*by_both(lambda: rows_to_levels(turned, levels, 20)), 20)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_sums_are_rescaled_the_same(by_both, size, gelu, normalised):
    norm = norm_of(size[1]) if normalised else None
    ours, theirs = by_both(lambda: rescale(sums_of(size), norm, gelu))
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gelus_become_the_same_levels(by_both, levels, size):
    num_rows = size[0] + 3
    ours, theirs = by_both(lambda: rescale_gelu_to_levels(sums_of(size), levels, num_rows))
    assert_same_levels(ours, theirs, size[0])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_what_is_added_and_normalised_is_the_same(by_both, size):
    residual, norm = torch.randn(size), norm_of(size[1])
    ours, theirs = by_both(lambda: rescale_add(sums_of(size), residual))
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    added = theirs
    ours, theirs = by_both(lambda: rescale_add_normalise(sums_of(size), residual, norm))
    for our, their in zip(ours, theirs, strict=True):
        assert_close(our, their, atol=1e-5, rtol=1e-5)
    assert_close(ours[0], added, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalised", [False, True])
def test_the_first_convolution_is_the_same(by_both, normalised):
    samples, weight, bias = torch.randn(900)[::2], torch.randn(10, 512), torch.randn(512)
    norm = norm_of(512) if normalised else None
    ours, theirs = by_both(lambda: convolve_gelu(samples, 5, weight, bias, norm))
    assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_gelu_is_torchs(by_both):
    rows = torch.linspace(-20, 20, 40001)[None]
    nothing = torch.zeros(rows.size(1))
    ours, theirs = by_both(
        lambda: rescale(Sums(rows.clone(), torch.ones(1), 1.0, nothing), gelu=True)
    )
    assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder with the sources, as a checkout that was not installed has them."""
    for path in kernels.HERE.glob("*.[ch]"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(kernels, "HERE", tmp_path)
    return tmp_path


def test_a_checkout_has_the_library_of_the_installation(tmp_path, sources, library, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    assert kernels._load()[0] is None
    assert "no library was found" in kernels._load()[1]
    installed = tmp_path / "site/fairseq_speedup/inference/kernels"
    installed.mkdir(parents=True)
    shutil.copy(library, installed)
    monkeypatch.setattr(sys, "path", ["/nowhere", str(tmp_path / "site")])
    found, why = kernels._load()
    assert Path(found._name).parent == installed and not why


def test_a_library_of_other_sources_is_not_used(sources, library, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    shutil.copy(library, sources)
    assert kernels._load()[0] is not None
    with open(sources / "rows.c", "a") as file:
        file.write("/* changed */")
    found, why = kernels._load()
    assert found is None and str(sources) in why and "other sources" in why


@pytest.mark.parametrize("content", [b"", b"no library"])
def test_what_is_no_library_is_named(sources, monkeypatch, content):
    monkeypatch.setattr(sys, "path", [])
    (sources / kernels.NAMES[0]).write_bytes(content)
    found, why = kernels._load()
    assert found is None and kernels.NAMES[0] in why and "cannot be loaded" in why


def test_a_form_without_them_says_so_once(tmp_path, monkeypatch, caplog):
    path = write_pretrained(tmp_path / "pretrained.pt")
    monkeypatch.setattr(kernels, "LIBRARY", None)
    monkeypatch.setattr(kernels, "_WHY_NOT", "no compiler in this test")
    for _ in range(2):
        report = to_inference_form(build_model(path), "fp32")
        assert report["kernels"] == "torch's operators: no compiler in this test"
    assert (
        caplog.text.count("takes longer here than it needs to: torch's operators: no compiler") == 1
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_what_is_not_fp32_is_left_to_torch(dtype):
    """And not read as if it were."""
    sums = sums_of((5, 64))
    norm = norm_of(64).to(dtype)
    residual = torch.randn(5, 64)
    added = rescale_add(sums, residual.to(dtype))
    tolerance = {"atol": 0.1, "rtol": 0.02}
    assert_close(added.float(), rescale_add(sums, residual), **tolerance)
    if dtype == torch.float64:
        convolved = convolve_gelu(
            torch.ones(50).to(dtype), 5, torch.ones(10, 4).to(dtype), torch.zeros(4).to(dtype)
        )
        assert_close(convolved, torch.full_like(convolved, 10.0))
    assert not sums.in_c(*norm.parameters())


def test_a_norm_that_is_not_fp32_is_not_read_as_if_it_were():
    with pytest.raises(TypeError, match="float64"):
        NormInC.of(norm_of(64).double())


def test_no_number_of_others_is_changed_by_it():
    """A library linked with -ffast-math makes numbers near to 0 nothing, in all of its process."""
    code = (
        "import torch; from fairseq_speedup.inference import kernels;"
        "print((torch.tensor(1e-38) / 100).item() > 0)"
    )
    assert run_forked("-c", code).stdout.strip() == "True"


SHAPES = [(1, 2, 8), (5, 1, 64), (33, 12, 64), (97, 3, 80), (200, 7, 24), (260, 4, 100), (7, 3, 5)]
# of the largest output: values have 1023 levels, weights 32767
WORDS_TOLERANCE = 0.01


def attention_of(num_frames, num_heads, dim, layout, with_bias):
    """What attend_in_c is called with, and what it is to give."""
    torch.manual_seed(0)
    projected = torch.randn(num_frames, 2, 3 * num_heads * dim) * 2
    biases = torch.randn(2, num_heads, num_frames, num_frames) * 3 if with_bias else None
    parts = projected.unflatten(2, (3, num_heads, dim)).permute(2, 1, 3, 0, 4)
    expected = attend(*parts, biases).transpose(0, 1)  # T x B x C
    lengths = None
    if layout == "packed":
        projected, expected = (each.transpose(0, 1).flatten(0, 1) for each in (projected, expected))
        projected, expected = projected[:, None], expected[:, None]
        lengths = [num_frames, num_frames]
    elif layout == "transposed":
        projected = projected.transpose(0, 1).contiguous().transpose(0, 1)
    return (projected, num_heads, lengths, biases), expected


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", ["padded", "packed", "transposed"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("most_bits", [512, 256, 128])
def test_attention_is_torchs(threads, library, monkeypatch, shape, layout, with_bias, most_bits):
    monkeypatch.setattr(kernels, "MOST_BITS", most_bits)
    given, expected = attention_of(*shape, layout, with_bias)
    assert_close(attend_in_c(*given), expected, atol=1e-4, rtol=1e-4)
    in_words = attend_in_c(*given, in_words=True)
    assert (in_words - expected).abs().max() < WORDS_TOLERANCE * expected.abs().max()
    if most_bits == 128:  # no instruction for them
        assert torch.equal(in_words, attend_in_c(*given))


@pytest.mark.parametrize("most_bits, instruction", [(512, "avx512_vnni"), (256, "avx2")])
def test_words_are_used_where_there_are_instructions(library, monkeypatch, most_bits, instruction):
    if not cpu_has(instruction):
        pytest.skip(f"a CPU without {instruction}")
    monkeypatch.setattr(kernels, "MOST_BITS", most_bits)
    given, _ = attention_of(33, 2, 64, "padded", False)
    assert not torch.equal(attend_in_c(*given), attend_in_c(*given, in_words=True))


@pytest.mark.parametrize("in_words", [False, True])
@pytest.mark.parametrize("part", range(3), ids=["query", "key", "value"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_attention_hides_no_broken_number(library, in_words, part, broken):
    """A model whose weights broke gives no transcript in its place."""
    projected = torch.randn(70, 1, 3 * 32)
    projected[30, 0, part * 32 + 3] = broken
    heads = attend_in_c(projected, 2, in_words=in_words).unflatten(2, (2, 16))
    whole = heads.isfinite().all(dim=-1)[:, 0]
    assert not whole[30, 0]
    assert whole[:, 1].all()
    if part == 0:  # who asks is whom it reaches; in words, those of its block
        assert whole[:, 0].sum() >= 69 - 23 * in_words
    else:
        assert not whole[:, 0].any()


@pytest.mark.parametrize("in_words", [False, True])
def test_attention_to_very_many_frames_alike(library, in_words):
    """Weights of words are made smaller, so that sums stay in 32 bits."""
    torch.manual_seed(0)
    value = torch.rand(5000, 1, 16) + 1
    given = torch.cat([torch.zeros(5000, 1, 32), value], dim=2)
    expected = value.mean(dim=0, keepdim=True).expand_as(value)
    assert_close(attend_in_c(given, 1, in_words=in_words), expected, atol=2e-3, rtol=0)


def test_packed_utterances_may_be_of_several_lengths(threads, library):
    projected = torch.randn(60, 1, 3 * 32)
    for in_words in (False, True):
        together = attend_in_c(projected, 4, [17, 1, 42], in_words=in_words)
        apart = [attend_in_c(each, 4, in_words=in_words) for each in projected.split([17, 1, 42])]
        assert torch.equal(together, torch.cat(apart))


@pytest.mark.parametrize("in_words", [False, True])
def test_attention_to_one_frame_alone_and_to_all_alike(threads, library, in_words):
    """Scores that are far apart, and that are the same."""
    value = torch.randn(50, 1, 64)
    alike = torch.zeros(50, 1, 64)
    tolerance = {"atol": WORDS_TOLERANCE, "rtol": 0} if in_words else {"atol": 1e-6, "rtol": 1e-5}
    of_alike = attend_in_c(torch.cat([alike, alike, value], dim=2), 1, in_words=in_words)
    assert_close(of_alike, value.mean(dim=0, keepdim=True).expand_as(value), **tolerance)
    apart = torch.zeros(50, 1, 64)
    apart[torch.arange(50), 0, torch.arange(50)] = 1e4
    of_apart = attend_in_c(torch.cat([apart, apart, value], dim=2), 1, in_words=in_words)
    assert_close(of_apart, value, **tolerance)


def test_attention_in_c_is_for_what_it_can():
    projected = torch.zeros(2, 1, 24)
    assert not can_attend(projected, torch.zeros(1, 2, dtype=torch.bool))
    assert not can_attend(projected.bfloat16(), None)
    assert not can_attend(projected.to("meta"), None)
