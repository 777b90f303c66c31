"""``convert``, both ways, against Hugging Face's implementation."""

import json
import re
import shutil
import sys

import pytest
import soundfile
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from helpers.commands import generate, run_command
from helpers.corpora import LETTERS, letters_dictionary
from helpers.models import batch_of, build_model, finetuned_state, write_pretrained
from helpers.processes import run_forked
from helpers.results import check_results, words_of

from fairseq_speedup.__main__ import main
from fairseq_speedup.hugging_face import convert as work
from fairseq_speedup.hugging_face import wav2vec2_options
from fairseq_speedup.hugging_face.labels import read_json
from fairseq_speedup.pretrained import build_encoder, load_weights, read_file

transformers = pytest.importorskip("transformers")
from public_checkpoints import (  # noqa: E402
    CANONICAL,
    DATA2VEC,
    FINETUNED,
    FORMS,
    LARGE,
    WAVLM,
    random_model,
    reference,
    write_finetuned,
    write_folder,
    write_form,
)

MODELS = {
    "wav2vec2 base": ("Wav2Vec2", {}),
    "wav2vec2 large": ("Wav2Vec2", LARGE),
    "hubert": ("Hubert", {"hidden_act": "relu"}),
    "hubert without feature norm": ("Hubert", {"feat_proj_layer_norm": False}),
    "wavlm base": ("WavLM", WAVLM),
    "wavlm large": ("WavLM", WAVLM | LARGE),
    "data2vec_audio": ("Data2VecAudio", DATA2VEC),
}
NUM_LABELS = len(CANONICAL)


def convert(source, target, *options) -> None:
    assert main(["convert", str(source), str(target), *options]) == 0


def refused(source, target, capsys, *options) -> str:
    """The one line of the error; nothing may be left behind."""
    before = sorted(target.parent.iterdir())
    assert main(["convert", str(source), str(target), *options]) == 1
    assert sorted(target.parent.iterdir()) == before
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def ctc(kind="Wav2Vec2", options=LARGE, num_labels=NUM_LABELS, **others):
    return random_model(kind, "ForCTC", options | {"vocab_size": num_labels, **others})


def same_weights(model, other) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def load_ctc(path, data):
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(data)})
    return model.eval()


@pytest.mark.parametrize("end", ["Model", "ForCTC"])
@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_gives_the_same_weights(name, end, tmp_path, capsys):
    kind, options = MODELS[name]
    options = options | ({"vocab_size": NUM_LABELS} if end == "ForCTC" else {})
    model = random_model(kind, end, options)
    source = write_folder(tmp_path / "source", model, normalize="large" in name)
    convert(source, tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "back")
    differences = re.findall(r"in float64: (\S+) alone, (\S+) in a padded", capsys.readouterr().out)
    assert len(differences) == 2
    assert max(float(value) for pair in differences for value in pair) < 1e-5

    auto = transformers.AutoModelForCTC if end == "ForCTC" else transformers.AutoModel
    back = auto.from_pretrained(tmp_path / "back")
    assert type(back) is type(model)
    assert same_weights(model, back)
    given, found = model.config.to_dict(), back.config.to_dict()
    options = {**wav2vec2_options(given), "vocab_size": given["vocab_size"]}
    assert {**wav2vec2_options(found), "vocab_size": found["vocab_size"]} == options
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "back")
    assert extractor.do_normalize == ("large" in name)
    assert extractor.return_attention_mask == (given.get("feat_extract_norm") != "group")
    if end == "ForCTC":
        processor = transformers.AutoProcessor.from_pretrained(tmp_path / "back")
        assert processor.tokenizer.get_vocab() == {t: i for i, t in enumerate(CANONICAL)}


# those that are published pruned have layers of several sizes
TRANSFORMERS = [f for f in FORMS if "conformer" not in f and not f.startswith("dp")]


@pytest.mark.parametrize("form", TRANSFORMERS)
def test_the_public_forms_become_folders(form, tmp_path):
    kind, _, normalize = FORMS[form]
    model = reference(form)
    write_form(tmp_path / "public.pt", form, model)
    convert(tmp_path / "public.pt", tmp_path / "folder")
    found = transformers.AutoModel.from_pretrained(tmp_path / "folder")
    assert type(found).__name__ == f"{kind}Model"
    if form.endswith(("s3prl", "Lightning")):  # which have no embedding of masked frames
        torch.nn.init.zeros_(model.masked_spec_embed)
    assert same_weights(model, found)
    config = json.loads((tmp_path / "folder/preprocessor_config.json").read_text())
    assert config["do_normalize"] == normalize


@pytest.mark.parametrize("name", [n for n in FINETUNED if FINETUNED[n][0] in TRANSFORMERS])
@torch.no_grad()
def test_public_finetuned_forms_become_folders(name, tmp_path, capsys):
    inside = "cfg, Namespace" not in name
    model = reference(FINETUNED[name][0])
    path, written = tmp_path / "public.pt", tmp_path / "dict.ltr.txt"
    dictionary = letters_dictionary()
    dictionary.save(str(written))
    head = write_finetuned(path, name, model, NUM_LABELS, dictionary if inside else None)
    options = []
    if not inside:
        assert "does not hold its dictionary: give --dictionary" in refused(
            path, tmp_path / "folder", capsys
        )
        options = ["--dictionary", str(written)]
    convert(path, tmp_path / "folder", *options)
    found = transformers.AutoModelForCTC.from_pretrained(tmp_path / "folder")
    assert same_weights(model, getattr(found, found.base_model_prefix))
    assert torch.equal(found.lm_head.weight, head)
    vocab = transformers.AutoProcessor.from_pretrained(tmp_path / "folder").tokenizer.get_vocab()
    assert vocab["<pad>"] == 0
    assert [vocab[letter] for letter in LETTERS] == list(range(4, NUM_LABELS))


# blank at the end, no <s> nor </s>, the word delimiter in between: as in many uploads
SHUFFLED = ["E", "T", "A", "|", "O", "N", "I", "H", "S", "R", "[UNK]", "[PAD]"]
TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]"}


@torch.no_grad()
def test_a_converted_checkpoint_decodes_to_hugging_faces_transcripts(corpus, tmp_path):
    model = ctc(num_labels=len(SHUFFLED), pad_token_id=len(SHUFFLED) - 1)
    source = write_folder(tmp_path / "source", model, vocab=SHUFFLED, **TOKENS)
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
    (data / "dict.ltr.txt").unlink()
    convert(source, data / "model.pt")
    assert Dictionary.load(str(data / "dict.ltr.txt")).symbols == [
        *("<s>", "<pad>", "</s>", "<unk>", "E", "T", "A", "|", "O", "N", "I", "H", "S", "R")
    ]
    generate(data, data / "model.pt", tmp_path / "results", "--batch-size", 4)
    check_results(tmp_path / "results", data)
    found = words_of(tmp_path / "results/generate-test.txt", "H-")
    processor = transformers.AutoProcessor.from_pretrained(source)
    different = set()
    for index, line in enumerate((data / "test.tsv").read_text().splitlines()[1:]):
        waveform, rate = soundfile.read(data / "audio" / line.split("\t")[0])
        inputs = processor(waveform, sampling_rate=rate, return_tensors="pt")
        text = processor.batch_decode(model(inputs.input_values.float()).logits.argmax(-1))[0]
        assert found[str(index)] == text.split()
        different.add(text)
    assert len(different) > 1


def test_any_place_of_the_blank_comes_back_as_the_first(tmp_path):
    model = ctc(num_labels=len(SHUFFLED), pad_token_id=len(SHUFFLED) - 1)
    vocab = [token.replace("|", "_") for token in SHUFFLED]
    tokens = TOKENS | {"word_delimiter_token": {"content": "_", "lstrip": False}}
    source = write_folder(tmp_path / "source", model, vocab=vocab, **tokens)
    convert(source, tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "back")
    back = transformers.AutoModelForCTC.from_pretrained(tmp_path / "back")
    vocab = json.loads((tmp_path / "back/vocab.json").read_text())
    assert back.config.pad_token_id == vocab["<pad>"] == 0
    names = {"[PAD]": "<pad>", "[UNK]": "<unk>"}
    for row, token in enumerate(SHUFFLED):
        there = vocab[names.get(token, token)]
        assert torch.equal(back.lm_head.weight[there], model.lm_head.weight[row])
        assert back.lm_head.bias[there] == model.lm_head.bias[row]
    assert back.lm_head.bias[vocab["<s>"]] == back.lm_head.bias[vocab["</s>"]] == -1e4


def test_phonemes_of_several_characters_without_word_delimiter(tmp_path):
    vocab = ["<pad>", "<s>", "</s>", "<unk>", "tʃ", "dʒ", "ə", "n̩"]
    model = ctc(num_labels=len(vocab))
    tokenizer = {
        "tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer",
        "word_delimiter_token": None,
        "phone_delimiter_token": " ",
        "do_phonemize": False,
    }
    source = write_folder(tmp_path / "source", model, vocab=vocab, **tokenizer)
    convert(source, tmp_path / "model.pt")
    assert Dictionary.load(str(tmp_path / "dict.ltr.txt")).symbols[4:] == vocab[4:]
    convert(tmp_path / "model.pt", tmp_path / "back")
    assert same_weights(model, transformers.AutoModelForCTC.from_pretrained(tmp_path / "back"))


def test_tokens_added_by_the_tokenizer_have_no_row(tmp_path):
    """``<s>`` and ``</s>`` get numbers past the head where vocab.json lacks them."""
    vocab = ["<pad>", "<unk>", *LETTERS]
    source = write_folder(tmp_path / "source", ctc(num_labels=len(vocab)), vocab=vocab)
    added = {"<s>": len(vocab), "</s>": len(vocab) + 1}
    (source / "added_tokens.json").write_text(json.dumps(added))
    convert(source, tmp_path / "model.pt")
    assert Dictionary.load(str(tmp_path / "dict.ltr.txt")).symbols[4:] == LETTERS


STOCK = """
import sys
import torch
from fairseq import checkpoint_utils, tasks
from fairseq.data import Dictionary
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig
import fairseq.examples.data2vec.models.data2vec_audio
from omegaconf import OmegaConf

torch.serialization.add_safe_globals([Dictionary])  # this build's torch.load lacks it
folder = sys.argv[1]
source = torch.load(f"{folder}/source.pt")
for name in ("wav2vec2", "hubert", "data2vec_audio"):
    expected = torch.load(f"{folder}/{name}.expected")
    (model,), cfg, _ = checkpoint_utils.load_model_ensemble_and_task(
        [f"{folder}/{name}-ctc/model.pt"], {"data": f"{folder}/{name}-ctc"}
    )
    assert cfg.model._name == "wav2vec_ctc"
    with torch.no_grad():
        logits = model.eval()(source=source, padding_mask=None)["encoder_out"].transpose(0, 1)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    path = f"{folder}/{name}.pt"
    encoder = model.w2v_encoder.w2v_model.state_dict()
    if name == "hubert":
        (again,), _, _ = checkpoint_utils.load_model_ensemble_and_task([path], strict=False)
        weights = again.state_dict()
    else:
        cfg = OmegaConf.create({"_name": "wav2vec_ctc", "w2v_path": path, "normalize": True})
        cfg.data, cfg.ddp_backend = f"{folder}/{name}-ctc", "legacy_ddp"
        task = OmegaConf.create({"_name": "audio_finetuning", "data": cfg.data, "labels": "ltr"})
        again = tasks.setup_task(task).build_model(cfg)
        weights = again.w2v_encoder.w2v_model.state_dict()
    assert all(torch.equal(weights[key], encoder[key]) for key in encoder), name
assert "fairseq_speedup" not in sys.modules
print("stock has loaded them")
"""


@torch.no_grad()
def test_stock_fairseq_loads_what_was_converted(tmp_path):
    source = batch_of([9000])["source"]
    torch.save(source, tmp_path / "source.pt")
    for name, kind, options in [
        ("wav2vec2", "Wav2Vec2", LARGE),
        ("hubert", "Hubert", LARGE),
        ("data2vec_audio", "Data2VecAudio", DATA2VEC),
    ]:
        model = ctc(kind, options)
        torch.save(model(source).logits, tmp_path / f"{name}.expected")
        (tmp_path / f"{name}-ctc").mkdir()
        whole = write_folder(tmp_path / f"{name}-whole", model)
        base = write_folder(tmp_path / f"{name}-base", getattr(model, model.base_model_prefix))
        convert(whole, tmp_path / f"{name}-ctc/model.pt")
        convert(base, tmp_path / f"{name}.pt")
    done = run_forked("-c", STOCK, tmp_path)
    assert "stock has loaded them" in done.stdout


def test_converted_checkpoints_are_starting_points(tmp_path):
    model = ctc("WavLM", WAVLM | LARGE)
    convert(write_folder(tmp_path / "source", model), tmp_path / "model.pt")
    reduced = build_model(
        tmp_path / "model.pt", labels=LETTERS, downsample="conv", downsample_factor=2.0
    )
    assert torch.equal(reduced.w2v_encoder.proj.weight, model.lm_head.weight)
    bias = reduced.w2v_encoder.w2v_model.encoder.relative_attention_bias.weight
    assert torch.equal(bias, model.wavlm.encoder.layers[0].attention.rel_attn_embed.weight)
    read = read_file(tmp_path / "model.pt")
    load_weights(build_encoder(read.cfg), read.weights, "model.pt")
    assert read.cfg.encoder_variant.family == "wavlm"


def test_pretraining_weights_are_left_out_and_counted(tmp_path, capsys):
    sizes = {"codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 4}
    model = random_model("Wav2Vec2", "ForPreTraining", sizes)
    convert(write_folder(tmp_path / "source", model), tmp_path / "model.pt")
    only = [name for name in model.state_dict() if not name.startswith("wav2vec2.")]
    assert len(only) == 7
    assert "7 weights that only pretraining needs are left out" in capsys.readouterr().out
    convert(tmp_path / "model.pt", tmp_path / "back")
    back = transformers.AutoModel.from_pretrained(tmp_path / "back")
    assert same_weights(model.wav2vec2, back)


def test_a_model_without_an_embedding_of_masks_gets_zeros(tmp_path, capsys):
    model = random_model("Wav2Vec2", "Model", {"mask_time_prob": 0.0})
    assert not hasattr(model, "masked_spec_embed")
    convert(write_folder(tmp_path / "source", model), tmp_path / "model.pt")
    assert "note: it has no embedding of masked frames" in capsys.readouterr().out
    assert not read_file(tmp_path / "model.pt").weights["mask_emb"].any()


# -- forms of weights ----------------------------------------------------------------------------


def old_names(weights: dict) -> dict:
    new = {"parametrizations.weight.original0": "weight_g"}
    new["parametrizations.weight.original1"] = "weight_v"
    for theirs, old in new.items():
        weights = {name.replace(theirs, old): weight for name, weight in weights.items()}
    return weights


@pytest.mark.parametrize("form", ["pytorch_model.bin", "shards", "half"])
def test_weights_in_other_forms(form, tmp_path):
    model = ctc("Hubert")
    source = write_folder(tmp_path / "source", model)
    if form == "pytorch_model.bin":
        (source / "model.safetensors").unlink()
        torch.save(old_names(model.state_dict()), source / form)
    elif form == "shards":
        (source / "model.safetensors").unlink()
        model.save_pretrained(source, max_shard_size="20KB")
        assert len(list(source.glob("model-*.safetensors"))) > 1
    else:
        model.half().save_pretrained(source)
        model.float()
    convert(source, tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "back")
    assert same_weights(model, transformers.AutoModelForCTC.from_pretrained(tmp_path / "back"))


class Evil:
    def __reduce__(self):
        return print, ("evil code has run",)


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    source = write_folder(tmp_path / "source", ctc())
    (source / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil()}, source / "pytorch_model.bin")
    line = refused(source, tmp_path / "model.pt", capsys)
    assert "pytorch_model.bin is refused" in line
    assert "evil" not in line


# -- what is refused -----------------------------------------------------------------------------


def edit(path, **changes) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changes}))


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def drop_weight(source, name, new=None) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(source / "model.safetensors")
    weight = weights.pop(name)
    save_file(weights | ({new: weight} if new else {}), source / "model.safetensors")


def lose_shard(source) -> None:
    (source / "model.safetensors").unlink()
    ctc().save_pretrained(source, max_shard_size="20KB")
    next(source.glob("model-00002*")).unlink()


def leave_folder(source) -> None:
    index = {"weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "model.safetensors").unlink()


BAD_FOLDERS = {
    "no config": (lambda s: (s / "config.json").unlink(), r"config.json does not exist"),
    "no weights": (lambda s: (s / "model.safetensors").unlink(), r"source has no weights: neither"),
    "config cut": (lambda s: cut(s / "config.json"), r"config.json is no JSON"),
    "weights cut": (lambda s: cut(s / "model.safetensors"), r"model.safetensors \(1,000 bytes\)"),
    "another kind": (
        lambda s: edit(s / "config.json", model_type="whisper"),
        r"model_type='whisper' is not .* valid values: wav2vec2, hubert, wavlm, data2vec-audio",
    ),
    "another task": (
        lambda s: edit(s / "config.json", architectures=["Wav2Vec2ForXVector"]),
        r"architectures=Wav2Vec2ForXVector is not .*Wav2Vec2Model, .*ForPreTraining, .*ForCTC",
    ),
    "adapter": (lambda s: edit(s / "config.json", add_adapter=True), r"add_adapter=True cannot"),
    "language adapter": (
        lambda s: edit(s / "config.json", adapter_attn_dim=16),
        r"adapter_attn_dim=16 cannot be converted; valid values: None",
    ),
    "activation": (
        lambda s: edit(s / "config.json", hidden_act="gelu_new"),
        r"hidden_act=gelu_new cannot be converted; valid values: gelu, relu",
    ),
    "option of a wrong type": (
        lambda s: edit(s / "config.json", hidden_size="wide"),
        r"config.json: .*hidden_size",
    ),
    "another size": (
        lambda s: edit(s / "config.json", intermediate_size=24),
        r"weights are not a Wav2Vec2ForCTC's; of another shape: .*(feed_forward)",
    ),
    "unknown weight": (
        lambda s: drop_weight(s, "lm_head.bias", "lm_head.offset"),
        r"missing: lm_head.bias; unknown: lm_head.offset",
    ),
    "missing weight": (
        lambda s: drop_weight(s, "wav2vec2.encoder.layers.1.attention.k_proj.weight"),
        r"missing: wav2vec2.encoder.layers.1.attention.k_proj.weight",
    ),
    "missing shard": (lose_shard, r"index.json names model-00002-of-\d+.safetensors, not in"),
    "shard elsewhere": (leave_folder, r"weight_map does not name files of this folder"),
    "no vocabulary": (lambda s: (s / "vocab.json").unlink(), r"vocab.json does not exist"),
    "small vocabulary": (
        lambda s: (s / "vocab.json").write_text('{"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}'),
        r"the head has 14 rows, and no token is for 4, 5",
    ),
    "large vocabulary": (
        lambda s: edit(s / "vocab.json", Q=14),
        r"has 15 tokens, and the head 14 rows: none for Q",
    ),
    "number twice": (lambda s: edit(s / "vocab.json", R=4), r"two tokens have the same number"),
    "by language": (lambda s: edit(s / "vocab.json", eng={"a": 0}), r"'eng' has no number"),
    "white space": (
        lambda s: (s / "vocab.json").write_text(
            json.dumps({t.replace("R", "\u00a0"): i for i, t in enumerate(CANONICAL)})
        ),
        r"'\\xa0' is empty or has white space",
    ),
    "another blank": (
        lambda s: edit(s / "config.json", pad_token_id=4),
        r"pad_token=<pad>, CTC's blank, is 0 in vocab.json, and pad_token_id=4 in config.json",
    ),
    "no preprocessor": (
        lambda s: (s / "preprocessor_config.json").unlink(),
        r"preprocessor_config.json does not exist.* --normalize true or",
    ),
    "rate": (
        lambda s: edit(s / "preprocessor_config.json", sampling_rate=8000),
        r"sampling_rate=8000; it must be 16000",
    ),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_folders_are_refused_in_one_line(name, tmp_path, capsys):
    spoil, words = BAD_FOLDERS[name]
    source = write_folder(tmp_path / "source", ctc())
    spoil(source)
    assert re.search(words, refused(source, tmp_path / "model.pt", capsys))


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        # fairseq's positional convolutions are 3 frames long at least
        (
            *("Data2VecAudio", DATA2VEC | {"conv_pos_kernel_size": 1}),
            "its weights do not fit its config; of another shape: .*pos_conv",
        ),
        # it projects nothing where the CNN is as wide as the transformer
        (
            *("Wav2Vec2", {"hidden_size": 8}),
            r"its feature_projection\.projection maps 8 channels to as many, and fairseq's encoder",
        ),
    ],
)
def test_what_fairseq_would_build_otherwise_is_refused(kind, options, words, tmp_path, capsys):
    model = random_model(kind, "ForCTC", options)
    vocab = [str(number) for number in range(32)]
    source = write_folder(tmp_path / "source", model, vocab=vocab, pad_token="0")
    line = refused(source, tmp_path / "model.pt", capsys)
    assert re.search(f"source: {words}", line)


def test_normalize_is_asked_for_where_nothing_says_it(tmp_path, capsys):
    source = write_folder(tmp_path / "source", random_model("Wav2Vec2", "Model", LARGE))
    line = refused(source, tmp_path / "model.pt", capsys, "--normalize", "false")
    assert "do_normalize=True" in line
    extractor = source / "preprocessor_config.json"
    within = {"feature_extractor": json.loads(extractor.read_text())}  # as transformers 5 saves it
    extractor.unlink()
    (source / "processor_config.json").write_text(json.dumps(within))
    line = refused(source, tmp_path / "model.pt", capsys, "--normalize", "false")
    assert "processor_config.json: do_normalize=True" in line
    (source / "processor_config.json").unlink()
    convert(source, tmp_path / "model.pt", "--normalize", "false")
    assert read_file(tmp_path / "model.pt").cfg.task.normalize is False


def test_what_exists_is_kept_without_overwrite(tmp_path, capsys):
    source = write_folder(tmp_path / "source", ctc())
    target, back = tmp_path / "model.pt", tmp_path / "back"
    target.write_text("kept")
    assert "exists; give --overwrite" in refused(source, target, capsys)
    assert target.read_text() == "kept"
    target.unlink()
    (tmp_path / "dict.ltr.txt").write_text("A 1\n")
    assert "is another dictionary; write elsewhere" in refused(source, target, capsys)
    convert(source, target, "--overwrite")
    convert(source, target, "--overwrite")
    assert Dictionary.load(str(tmp_path / "dict.ltr.txt")).symbols[4:] == LETTERS
    assert "is a folder; give a checkpoint" in refused(source, source, capsys)
    assert "is a file; give a folder" in refused(target, target, capsys)

    convert(target, back)
    (back / "README.md").write_text("mine")
    assert "has config.json, model.safetensors" in refused(target, back, capsys)
    base = write_folder(tmp_path / "base", random_model("Wav2Vec2", "Model", {}))
    convert(base, tmp_path / "base.pt")
    convert(tmp_path / "base.pt", back, "--overwrite")
    names = {path.name for path in back.iterdir()}
    assert names == {*("README.md", "config.json", "model.safetensors", "preprocessor_config.json")}


@pytest.mark.parametrize("direction", ["to fairseq", "to Hugging Face"])
def test_numbers_that_differ_write_nothing(direction, tmp_path, capsys, monkeypatch):
    source, target = write_folder(tmp_path / "source", ctc()), tmp_path / "model.pt"
    if direction == "to fairseq":
        make, target = work.checkpoint_of, tmp_path / "other.pt"

        def spoilt(pretrained):
            state = make(pretrained)
            name = "w2v_encoder.w2v_model.encoder.layers.3.fc1.bias"
            state["model"][name] = state["model"][name] + 1e-2
            return state

        monkeypatch.setattr(work, "checkpoint_of", spoilt)
    else:
        convert(source, target)
        source, target, write = target, tmp_path / "back", work.write_folder

        def spoilt(path, *args):
            write(path, *args)
            drop_weight_value(path)

        def drop_weight_value(path):
            from safetensors.torch import load_file, save_file

            weights = load_file(f"{path}/model.safetensors")
            weights["lm_head.bias"][5] += float("nan")
            save_file(weights, f"{path}/model.safetensors", metadata={"format": "pt"})

        monkeypatch.setattr(work, "write_folder", spoilt)
    line = refused(source, target, capsys)
    assert re.search(r"differ by \S+ on random audio, more than 1e-04: nothing is written", line)


def save_ours(path, pretrained, **options):
    model = build_model(pretrained, labels=LETTERS, **options)
    dictionary = letters_dictionary()
    state = finetuned_state(
        model, "speedup_ctc", {"_name": "speedup_finetuning", "normalize": True}
    )
    state["task_state"] = {"target_dictionary": dictionary}
    torch.save(state, path)
    return model


@torch.no_grad()
@pytest.mark.parametrize("padding", ["masked", "stock"])
def test_ours_without_reductions_becomes_a_folder(padding, tmp_path):
    w2v_path = write_pretrained(tmp_path / "base.pt", extractor_mode="default")
    model = save_ours(tmp_path / "ours.pt", w2v_path, padding=padding)
    convert(tmp_path / "ours.pt", tmp_path / "folder")
    found = transformers.AutoModelForCTC.from_pretrained(tmp_path / "folder")
    source = batch_of([9000])["source"]
    logits = model(source=source, padding_mask=None)["encoder_out"].transpose(0, 1)
    torch.testing.assert_close(found(source).logits, logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_where_nothing_is_projected_the_folder_projects_to_the_same(tmp_path):
    """fairseq's encoder has no projection where its CNN is as wide as its transformer."""
    w2v_path = write_pretrained(
        tmp_path / "base.pt",
        conv_feature_layers="[(8, 10, 5)] + [(8, 3, 2)] * 5 + [(16, 2, 2)]",
        encoder_embed_dim=16,
        encoder_attention_heads=4,
    )
    model = save_ours(tmp_path / "ours.pt", w2v_path)
    assert model.w2v_encoder.w2v_model.post_extract_proj is None
    convert(tmp_path / "ours.pt", tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "back.pt")
    back = read_file(str(tmp_path / "back.pt"))
    ours = model.w2v_encoder.w2v_model.state_dict()
    assert back.weights.keys() == ours.keys()
    assert all(torch.equal(back.weights[name], weight) for name, weight in ours.items())


def test_transformers_loads_a_written_folder_in_a_process_of_its_own(pretrained, tmp_path):
    """As its users do: nothing of ours is imported. No torchaudio that cannot be loaded may lie in
    the environment, see examples/environment.sh."""
    model = save_ours(tmp_path / "ours.pt", pretrained)
    convert(tmp_path / "ours.pt", tmp_path / "folder")
    torch.save(batch_of([9000])["source"], tmp_path / "source.pt")
    script = f"""
import torch
from transformers import AutoModelForCTC, AutoProcessor
AutoProcessor.from_pretrained({str(tmp_path / "folder")!r})
model = AutoModelForCTC.from_pretrained({str(tmp_path / "folder")!r})
with torch.no_grad():
    logits = model(torch.load({str(tmp_path / "source.pt")!r})).logits
torch.save(logits, {str(tmp_path / "logits.pt")!r})
"""
    run_command(sys.executable, "-c", script)
    with torch.no_grad():
        expected = model(**batch_of([9000]))["encoder_out"].transpose(0, 1)
    found = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_layers": "1", "frame_pool": 2}, r"\(frame_pool=2, keep_layers=1\)"),
        ({"downsample": "conv", "downsample_factor": 2.0}, r"\(downsample=conv, downsample_factor"),
        ({"head": "mlp"}, r"\(head=mlp\)"),
    ],
)
def test_reduced_models_are_refused_by_option(options, words, pretrained, tmp_path, capsys):
    save_ours(tmp_path / "ours.pt", pretrained, **options)
    line = refused(tmp_path / "ours.pt", tmp_path / "folder", capsys)
    assert re.search(rf"reduced model {words}.* convert needs all reductions off", line)


def test_bad_checkpoints_are_refused(pretrained, tmp_path, capsys):
    target = tmp_path / "folder"
    assert "lost.pt does not exist" in refused(tmp_path / "lost.pt", target, capsys)
    cut_file = tmp_path / "cut.pt"
    cut_file.write_bytes(pretrained.read_bytes()[:3000])
    assert "cannot be read as a fairseq checkpoint" in refused(cut_file, target, capsys)
    state = torch.load(pretrained)
    state["cfg"]["model"]["_name"] = "wav2vec"
    torch.save(state, tmp_path / "other.pt")
    assert "holds a 'wav2vec' model" in refused(tmp_path / "other.pt", target, capsys)
    state["cfg"]["model"] |= {"_name": "wav2vec2", "activation_fn": "tanh"}
    torch.save(state, tmp_path / "tanh.pt")
    words = "activation_fn=tanh cannot be converted; valid values: gelu, relu"
    assert words in refused(tmp_path / "tanh.pt", target, capsys)
    form = "wav2vec2 conformer rel_pos, cfg"
    write_form(tmp_path / "conformer.pt", form, reference(form))
    words = "layer_type=conformer cannot be converted; valid values: transformer"
    assert words in refused(tmp_path / "conformer.pt", target, capsys)
    options = ["--dictionary", str(tmp_path / "dict.txt")]
    assert "is pretrained and has no labels" in refused(pretrained, target, capsys, *options)
    options = ["--normalize", "true"]
    assert "--normalize is for a folder" in refused(pretrained, target, capsys, *options)
    assert main(["convert", str(pretrained), str(tmp_path / "no" / "folder")]) == 1
    assert "/no does not exist" in capsys.readouterr().err


def test_a_dictionary_that_is_not_the_heads_is_refused(pretrained, tmp_path, capsys):
    save_ours(tmp_path / "ours.pt", pretrained)
    state = torch.load(tmp_path / "ours.pt")
    other = tmp_path / "dict.txt"
    other.write_text("A 1\nB 1\n")
    mask = state["model"].pop("w2v_encoder.w2v_model.mask_emb")
    torch.save(state, tmp_path / "cut.pt")
    assert "mask_emb" in refused(tmp_path / "cut.pt", tmp_path / "f", capsys)
    state["model"]["w2v_encoder.w2v_model.mask_emb"] = mask
    line = refused(tmp_path / "ours.pt", tmp_path / "f", capsys, "--dictionary", str(other))
    assert f"--dictionary {other} is not the one that" in line
    del state["task_state"]
    torch.save(state, tmp_path / "ours.pt")
    line = refused(tmp_path / "ours.pt", tmp_path / "f", capsys, "--dictionary", str(other))
    assert "its head has 14 rows, its dictionary 6 symbols" in line
    other.write_text("A\n")
    line = refused(tmp_path / "ours.pt", tmp_path / "f", capsys, "--dictionary", str(other))
    assert "Incorrect dictionary format" in line


def test_a_byte_order_mark_is_no_part_of_json(tmp_path):
    (tmp_path / "vocab.json").write_text('\ufeff{"<pad>": 0}')
    assert read_json(str(tmp_path / "vocab.json")) == {"<pad>": 0}


@pytest.mark.parametrize("module", ["transformers", "safetensors.torch"])
def test_without_hugging_faces_libraries_the_extra_is_named(module, tmp_path, capsys, monkeypatch):
    source = write_folder(tmp_path / "source", ctc())
    monkeypatch.setitem(sys.modules, module, None)
    line = refused(source, tmp_path / "model.pt", capsys)
    assert "pip install '.[convert]'" in line
