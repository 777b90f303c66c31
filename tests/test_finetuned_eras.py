"""Fine-tuned checkpoints of every era: decoded as they are, reduced, and started from."""

import pytest
import torch
from fairseq import checkpoint_utils
from helpers.commands import generate_here
from helpers.corpora import LETTERS, write_dictionary
from helpers.models import batch_of, build_model
from helpers.results import check_results

transformers = pytest.importorskip("transformers")
from public_checkpoints import FINETUNED, FORMS, reference, write_finetuned  # noqa: E402

from fairseq_speedup.inspection.facts import inspect_file  # noqa: E402
from fairseq_speedup.macs import MacCounter  # noqa: E402

NUM_LABELS = 4 + len(LETTERS)


@pytest.fixture(scope="module", params=list(FINETUNED))
def finetuned(request, tmp_path_factory):
    """(path, Hugging Face's encoder, the head's weight, whether waveforms are normalised)"""
    path = tmp_path_factory.mktemp("finetuned") / "public.pt"
    form, _ = FINETUNED[request.param]
    model = reference(form, seed=1)
    dictionary = write_dictionary(path.parent)
    head = write_finetuned(path, request.param, model, NUM_LABELS, dictionary)
    return path, model, head, FORMS[form][2]


def test_it_is_decoded_without_its_pretrained_file(finetuned, corpus, tmp_path):
    path, _, _, _ = finetuned
    generate_here(corpus, path, tmp_path)
    check_results(tmp_path, corpus)


@torch.no_grad()
def test_its_logits_are_those_of_hugging_face_with_that_head(finetuned, corpus, parity):
    path, theirs, head, _ = finetuned
    source = batch_of([9000])["source"]
    expected = theirs(source).last_hidden_state @ head.T
    for overrides in ({}, {"keep_layers": "all"}):  # stock's model, and ours
        (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task(
            [str(path)], {"data": str(corpus), **overrides}
        )
        assert type(model).__name__ == ("SpeedupCtc" if overrides else "Wav2VecCtc")
        logits = model.eval()(source=source, padding_mask=None)["encoder_out"]
        parity(logits[:, 0], expected[0], atol=1e-3, rtol=1e-3)


def test_inspect_tells_what_it_is(finetuned, record_property):
    path, theirs, head, normalize = finetuned
    report = inspect_file(str(path))
    era = f"{report['era']}; pretraining {report['pretraining_config'].split(':')[0]}"
    for name, value in (("family", report["family"]), ("era", era), ("safe", report["safe"])):
        record_property(name, value)
    assert report["error"] is None
    assert report["safe"]
    assert (report["stage"], report["kind"]) == ("fine-tuned", "wav2vec_ctc")
    assert report["reductions"] == {}
    assert report["layers"] == theirs.config.num_hidden_layers
    assert report["normalize"] == normalize
    assert report["dictionary_size"] == NUM_LABELS == len(head)
    assert report["first_symbols"] == ["<s>", "<pad>", "</s>", "<unk>", *LETTERS[:6]]
    assert report["parameters_by_stage"]["head"] == head.numel() + NUM_LABELS
    model = build_model(path, normalize=normalize, labels=LETTERS)
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    macs = sum(report["macs_per_second_by_stage"].values()) * report["macs_seconds"]
    assert macs == pytest.approx(MacCounter(model).count([160000]).sum().total)
    where = report["pretraining_config"]
    state = torch.load(path, weights_only=False)
    if state["cfg"] is None:
        assert where == "lost with /lost/pretrained.pt: sizes are those of the weights"
    else:
        w2v_args = state["cfg"]["model"]["w2v_args"]
        assert where == ("inside" if isinstance(w2v_args, dict) else "inside, a Namespace")


def test_it_is_a_starting_point_and_keeps_its_head_where_the_labels_agree(finetuned):
    path, theirs, head, normalize = finetuned
    options = {"downsample": "conv", "downsample_factor": 2.0}
    model = build_model(path, normalize=normalize, labels=LETTERS, **options)
    assert torch.equal(model.w2v_encoder.proj.weight, head)
    layer, their_layer = (
        encoder.layers[2].final_layer_norm.weight
        for encoder in (model.w2v_encoder.w2v_model.encoder, theirs.encoder)
    )
    assert torch.equal(layer, their_layer)


def test_another_dictionary_keeps_the_head_label_by_label(finetuned, caplog):
    """Corpora number the same letters by how often they occur."""
    path, _, head, normalize = finetuned
    labels = ["Q", *reversed(LETTERS[:-1])]
    caplog.set_level("INFO")
    kept = build_model(path, normalize=normalize, labels=labels).w2v_encoder.proj
    had = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS]
    has = ["<s>", "<pad>", "</s>", "<unk>", *labels]
    bias = torch.load(path, weights_only=False)["model"]["w2v_encoder.proj.bias"]
    for row, symbol in enumerate(has):
        old_row = had.index("<unk>" if symbol == "Q" else symbol)  # it is new
        assert torch.equal(kept.weight[row], head[old_row].float()), symbol
        assert kept.bias[row] == bias[old_row].float()
    assert "the head of the fine-tuned checkpoint is kept; new to it: Q" in caplog.text


def test_a_dictionary_of_other_labels_keeps_no_head(finetuned, caplog):
    path, _, head, normalize = finetuned
    labels = [letter.lower() for letter in LETTERS]
    other = build_model(path, normalize=normalize, labels=labels).w2v_encoder.proj
    assert other.weight.shape == head.shape
    assert not any(torch.equal(row, old) for row, old in zip(other.weight, head, strict=True))
    assert "the fine-tuned checkpoint has other labels: its head is not kept" in caplog.text


def test_the_frames_that_logit_upsampling_makes_of_one_start_as_it(finetuned):
    path, _, head, normalize = finetuned
    plain, upsampled = (
        build_model(path, normalize=normalize, labels=LETTERS, frame_pool=2, logit_upsample=factor)
        for factor in (1, 2)
    )
    assert torch.equal(upsampled.w2v_encoder.proj.weight, torch.cat([head, head]))
    batch = batch_of([16000, 12000])
    with torch.no_grad():
        logits, doubled = (model.eval()(**batch)["encoder_out"] for model in (plain, upsampled))
    torch.testing.assert_close(doubled, logits.repeat_interleave(2, dim=0))
