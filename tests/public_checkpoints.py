"""Small random encoders of every public family: Hugging Face's model, and the same weights in the
form in which the family's authors publish them."""

import argparse
import json
import re

import torch
from helpers.corpora import LETTERS
from omegaconf import OmegaConf

from fairseq_speedup.hugging_face import library, to_fairseq, wav2vec2_options

transformers = library()

CNN = {
    "conv_dim": [8] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
}
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "do_stable_layer_norm": False,
    "conv_bias": False,
    "feat_extract_norm": "group",
}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
DATA2VEC = {
    "feat_extract_norm": "layer",
    "num_conv_pos_embeddings": 3,
    "conv_pos_kernel_size": 5,
}
CONFORMER = {
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "hidden_act": "swish",
    "conv_depthwise_kernel_size": 7,
}
ROTARY = CONFORMER | {"position_embeddings_type": "rotary", "hidden_size": 128}  # 64 a head
WAVLM = {"num_buckets": 32, "max_bucket_distance": 80}
CANONICAL = ["<pad>", "<s>", "</s>", "<unk>", *LETTERS]  # tokens of a vocab.json, in order

# family and form -> (Hugging Face's class, options, whether waveforms are normalised)
FORMS = {
    "wav2vec2 base, Namespace": ("Wav2Vec2", {"hidden_size": 128}, False),  # 64 a head
    "wav2vec2 large, cfg": ("Wav2Vec2", LARGE, True),
    "wav2vec2 large, OmegaConf": ("Wav2Vec2", LARGE, True),
    "wav2vec2 conformer rel_pos, cfg": ("Wav2Vec2Conformer", CONFORMER, True),
    "wav2vec2 conformer rope, OmegaConf": ("Wav2Vec2Conformer", ROTARY, True),
    "hubert base, cfg": ("Hubert", {}, False),
    "hubert large, cfg": ("Hubert", LARGE, True),
    "data2vec_audio base, cfg": ("Data2VecAudio", DATA2VEC, True),
    "distilhubert, s3prl": ("Hubert", {"feat_proj_layer_norm": False}, False),
    "wavlm base, Microsoft": ("WavLM", WAVLM, False),
    "wavlm large, Microsoft": ("WavLM", WAVLM | LARGE, True),
    "distilled_student, ours": ("Wav2Vec2", LARGE, True),
    "starhubert, Lightning": ("Hubert", {"hidden_size": 24, "num_attention_heads": 3}, False),
    "dphubert, authors": ("Hubert", {}, False),
    "dphubert large, authors": ("Hubert", LARGE, True),
    "dpwavlm, authors": ("WavLM", WAVLM, False),
}
# of models that are published pruned, by layer
HEADS_LEFT = [[0, 1], [1], [], [0]]
UNITS_LEFT = [32, 20, 0, 5]


def reference(form: str, seed: int = 0):
    """Hugging Face's model of a form, random, in eval mode."""
    kind, options, _ = FORMS[form]
    model = random_model(kind, "Model", options, seed)
    if form.startswith("dp"):
        _silence(model)
    return model


@torch.no_grad()
def _silence(model) -> None:
    """Heads and units that are pruned give nothing, nor do biases of parts without any."""
    for layer, heads, units in zip(model.encoder.layers, HEADS_LEFT, UNITS_LEFT, strict=True):
        gone = [head for head in range(2) if head not in heads]
        layer.attention.out_proj.weight.unflatten(1, (2, -1))[:, gone] = 0
        layer.feed_forward.output_dense.weight[:, units:] = 0
        if not heads:
            layer.attention.out_proj.bias.zero_()
        if not units:
            layer.feed_forward.output_dense.bias.zero_()


def random_model(kind: str, end: str, options: dict, seed: int = 0):
    """Hugging Face's class ``{kind}{end}`` with ``options``, small and random, in eval mode."""
    config = getattr(transformers, f"{kind}Config")(**(SIZES | CNN | options))
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}{end}")(config).eval()
    for parameter in model.parameters():  # biases and norms too: nothing at its default
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():  # statistics of batch norms
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model


def write_folder(path, model, normalize=True, vocab=CANONICAL, **tokenizer):
    """A folder as transformers writes it."""
    model.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": normalize}))
    if "lm_head.weight" in model.state_dict():
        tokens = {token: index for index, token in enumerate(vocab)}
        (path / "vocab.json").write_text(json.dumps(tokens))
        config = {"tokenizer_class": "Wav2Vec2CTCTokenizer"} | tokenizer
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def write_form(path, form: str, model) -> None:
    """``model``'s weights as the authors of its family publish theirs."""
    kind, _, normalize = FORMS[form]
    config = model.config.to_dict()
    group_norm = config["feat_extract_norm"] == "group"
    weights = {to_fairseq(name, group_norm): weight for name, weight in model.state_dict().items()}
    weights = {name: weight for name, weight in weights.items() if name is not None}
    frequencies = weights.pop("encoder.embed_positions.inv_freq", None)
    if frequencies is not None:  # of a Conformer: in each layer
        for layer in range(config["num_hidden_layers"]):
            weights[f"encoder.layers.{layer}.self_attn.rotary_emb.inv_freq"] = frequencies
    options = wav2vec2_options(config)
    if "Conformer" in kind:
        options["fp16"] = True  # as pretrained: an option of the model in that era
    torch.save(WRITERS[form.split(",")[1].strip()](form, weights, options, normalize), path)
    if "Lightning" in form:
        text = OmegaConf.to_yaml({"distiller": star_options(options), "train": {"gpus": 2}})
        path.with_suffix(".yaml").write_text(text)


def _fairseq(weights, **state):
    return {
        "args": None,
        "model": weights,
        "optimizer_history": [
            {
                "criterion_name": "x",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 1,
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 1}, "previous_training_time": 1.0},
        "last_optimizer_state": None,
        **state,
    }


PRETRAINING_WEIGHTS = {
    "wav2vec2": ["quantizer.vars", "project_q.weight", "final_proj.weight"],
    "hubert": ["final_proj.weight", "label_embs_concat"],
    "data2vec_audio": ["final_proj.weight", "_ema"],
}


def _with_pretraining_weights(family, weights):
    extra = {name: torch.zeros(2, 2) for name in PRETRAINING_WEIGHTS[family]}
    if "_ema" in extra:
        extra["_ema"] = {"mask_emb": torch.zeros(2)}
    return weights | extra


def _cfg_dict(form, weights, options, normalize):
    family = form.split()[0]
    cfg = {
        "common": {"seed": 1, "fp16": True},
        "task": {
            "_name": "hubert_pretraining" if family == "hubert" else "audio_pretraining",
            "data": "/lost/manifests",
            "normalize": normalize,
            "eval_wer": False,  # fields come and go between versions
            "label_rate": 50,
        },
        "model": {"_name": family, **options, "an_option_of_its_time": 1, "dropout": 0.1},
        "criterion": {"_name": "wav2vec"},
    }
    return _fairseq(_with_pretraining_weights(family, weights), cfg=cfg)


def _omegaconf(form, weights, options, normalize):
    state = _cfg_dict(form, weights, options, normalize)
    state["cfg"] = OmegaConf.create(state["cfg"])
    return state


def _namespace(form, weights, options, normalize):
    args = argparse.Namespace(
        arch="wav2vec2",
        task="audio_pretraining",
        data="/lost/manifests",
        normalize=normalize,
        criterion="wav2vec",
        no_progress_bar=False,
        **options,
    )
    return _fairseq(_with_pretraining_weights("wav2vec2", weights), args=args, cfg=None)


def _microsoft(form, weights, options, normalize):
    table = "encoder.relative_attention_bias.weight"
    weights = dict(weights)
    weights["encoder.layers.0.self_attn.relative_attention_bias.weight"] = weights.pop(table)
    return {"cfg": {**options, "normalize": normalize, "mask_prob": 0.8}, "model": weights}


def _s3prl(form, weights, options, normalize):
    weights = {name: weight for name, weight in weights.items() if name != "mask_emb"}
    weights["output_layer.0.weight"] = torch.zeros(2, 2)
    options = dict(options)
    options["extractor_conv_feature_layers"] = options.pop("conv_feature_layers")
    config = {"distiller": options | {"n_tasks": 3}, "teacher": {"model": "hubert_base"}}
    return {"Config": config, "Distiller": weights, "Step": 200000}


def _student(form, weights, options, normalize):
    """Of config/distillation: the student, and a head for each layer that it learned from."""
    teacher = {"encoder_variant": {}, "task": {"normalize": normalize}}
    teacher["model"] = {"_name": "wav2vec2", **options, "encoder_layers": 12}
    cfg = {
        "task": {"_name": "audio_pretraining", "normalize": normalize},
        "model": {
            "_name": "distilled_student",
            "student_layers": options["encoder_layers"],
            "w2v_args": teacher,
        },
    }
    weights = {f"student.{name}": weight for name, weight in weights.items()}
    return _fairseq(weights | {"heads.12.0.weight": torch.zeros(2, 2)}, cfg=cfg)


def _authors(form, weights, options, normalize):
    """DPHuBERT's: pruned, under torchaudio's names."""
    heads = [index for index in range(2)]
    dim = options["encoder_embed_dim"] // len(heads)
    renamed = {"feature_extractor.dummy_weight": torch.ones(8), "aux.weight": torch.zeros(2, 2)}
    for name, weight in weights.items():
        if name == "mask_emb":
            continue
        if layer := re.match(r"encoder\.layers\.(\d+)\.", name):
            index = int(layer[1])
            rows = (
                torch.arange(dim * len(heads)).unflatten(0, (2, dim))[HEADS_LEFT[index]].flatten()
            )
            units = UNITS_LEFT[index]
            if re.search(r"[qkv]_proj", name):
                weight = weight[rows]
            elif "out_proj.weight" in name:
                weight = weight[:, rows]
            elif "fc1" in name:
                weight = weight[:units]
            elif "fc2.weight" in name:
                weight = weight[:, :units]
            if ("self_attn." in name and not len(rows)) or ("fc" in name and not units):
                continue
        for ours, theirs in TORCHAUDIO:
            name = re.sub(ours, theirs, name)
        renamed[name] = weight
    config = {
        "extractor_mode": "group_norm" if options["extractor_mode"] == "default" else "layer_norm",
        "extractor_conv_layer_config": eval(options["conv_feature_layers"]),
        "extractor_conv_bias": options["conv_bias"],
        "encoder_embed_dim": options["encoder_embed_dim"],
        "encoder_projection_dropout": 0.1,
        "encoder_pos_conv_kernel": options["conv_pos"],
        "encoder_pos_conv_groups": options["conv_pos_groups"],
        "encoder_num_layers": 4,
        "encoder_use_attention": [bool(kept) for kept in HEADS_LEFT],
        "encoder_use_feed_forward": [units > 0 for units in UNITS_LEFT],
        "encoder_attention_dropout": 0.1,
        "encoder_ff_interm_features": [units or 32 for units in UNITS_LEFT],
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.1,
        "encoder_layer_norm_first": options["layer_norm_first"],
        "encoder_layer_drop": 0.05,
        "aux_num_out": None,
        "normalize_waveform": normalize,
        "extractor_prune_conv_channels": False,
    }
    if "wavlm" in form:
        config |= {"encoder_total_num_heads": 2, "encoder_remaining_heads": HEADS_LEFT}
        config |= {"encoder_num_buckets": 32, "encoder_max_distance": 80}
    else:
        config |= {"encoder_head_dim": dim, "encoder_num_heads": [len(h) for h in HEADS_LEFT]}
    projections = {"0.weight": torch.zeros(2, 2)}  # of distillation
    return {"state_dict": renamed, "config": config, "distill_linear_projs": projections}


def _lightning(form, weights, options, normalize):
    """Without its sizes, which are in a YAML file."""
    student = {f"student_model.{name}": w for name, w in weights.items() if name != "mask_emb"}
    student["student_model.final_proj.weight"] = torch.zeros(2, 2)
    return {"epoch": 3, "state_dict": student | {"teacher_model.model.mask_emb": torch.zeros(2)}}


def star_options(options: dict) -> dict:
    given = {name: value for name, value in options.items() if not isinstance(value, dict)}
    return given | {"reuse_pattern": "[True, True, True, True]", "init_conv_layers": True}


# of a student whose layers reuse attention maps: the last two take that of layer 2
REUSE_PATTERN = [True, False, True, False, False]


def write_reusing(path, pattern=REUSE_PATTERN, large: bool = False, **options) -> dict:
    """A small ARMHuBERT as its authors publish theirs, random: a layer that reuses a map has
    neither queries nor keys.

    Args:
        pattern: for each layer, whether it computes its own map
        large: of LARGE's kind
        options: of its YAML file, over those that fit the weights
    Returns:
        its weights under fairseq's names
    """
    sizes = {"num_hidden_layers": len(pattern), **(LARGE if large else {})}
    model = random_model("Hubert", "Model", sizes)
    weights = {to_fairseq(name, not large): weight for name, weight in model.state_dict().items()}
    for index, computes in enumerate(pattern):
        attention = f"encoder.layers.{index}.self_attn."
        weights[f"{attention}q_proj.weight"] *= 20  # maps are not all alike
        for name in () if computes else ("q_proj", "k_proj"):
            del weights[f"{attention}{name}.weight"], weights[f"{attention}{name}.bias"]
    given = star_options(wav2vec2_options(model.config.to_dict()))
    given |= {"reuse_pattern": str(list(pattern)), "required_seq_len_multiple": 1, **options}
    torch.save(_lightning("armhubert", weights, given, False), path)
    path.with_suffix(".yaml").write_text(OmegaConf.to_yaml({"distiller": given}))
    return weights


TORCHAUDIO = [  # patterns of fairseq's names -> torchaudio's
    (r"^encoder\.relative_attention_bias\.", "encoder.layers.0.self_attn.rel_attn_embed."),
    (r"^encoder\.", "encoder.transformer."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.2\.(1\.)?", r"\1.layer_norm."),
    (r"^layer_norm\.", "encoder.feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "encoder.feature_projection.projection."),
    (r"pos_conv\.0\.", "pos_conv_embed.conv."),
    (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
    (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
    (r"\.self_attn\.", ".attention."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
]
WRITERS = {
    "authors": _authors,
    "Lightning": _lightning,
    "ours": _student,
    "Namespace": _namespace,
    "cfg": _cfg_dict,
    "OmegaConf": _omegaconf,
    "Microsoft": _microsoft,
    "s3prl": _s3prl,
}


# Fine-tuned checkpoints: form -> (form of the encoder, where the config of pretraining is)
FINETUNED = {
    "wav2vec_small_100h: Namespace, pretrained file lost": ("wav2vec2 base, Namespace", "lost"),
    "wav2vec_vox_960h_pl: cfg, Namespace inside": ("wav2vec2 large, cfg", "Namespace"),
    "wav2vec2 in today's form": ("wav2vec2 large, cfg", "cfg"),
    "wav2vec2_conformer_large_rel_pos_100h: cfg": ("wav2vec2 conformer rel_pos, cfg", "cfg"),
    "wav2vec2 conformer: pretrained file lost": ("wav2vec2 conformer rope, OmegaConf", "lost"),
    "hubert_large_ll60k_finetune_ls960: cfg": ("hubert large, cfg", "cfg"),
    "data2vec_audio fine-tuned: cfg": ("data2vec_audio base, cfg", "cfg"),
}


def write_finetuned(path, name: str, model, num_labels: int, dictionary=None) -> torch.Tensor:
    """A CTC checkpoint with ``model`` as its encoder; returns the head's weight."""
    form, inside = FINETUNED[name]
    kind, _, normalize = FORMS[form]
    pretrained_path = path.with_suffix(".pretrained")
    write_form(pretrained_path, form, model)
    pretrained = torch.load(pretrained_path, weights_only=False)
    pretrained_path.unlink()
    dropped = tuple(PRETRAINING_WEIGHTS[form.split()[0]])
    head = torch.randn(num_labels, model.config.hidden_size)
    weights = {
        f"w2v_encoder.w2v_model.{key}": weight
        for key, weight in pretrained["model"].items()
        if not key.startswith(dropped)
    }
    weights |= {
        "w2v_encoder.proj.weight": head,
        "w2v_encoder.proj.bias": torch.zeros(num_labels),
    }
    options = {"w2v_path": "/lost/pretrained.pt", "apply_mask": True, "mask_prob": 0.5}
    task = {"data": "/lost", "labels": "ltr", "normalize": normalize, "sample_rate": 16000}
    extra = {"task_state": {"target_dictionary": dictionary}} if dictionary else {}
    if inside == "lost":
        args = argparse.Namespace(
            arch="wav2vec_ctc", task="audio_pretraining", w2v_args=None, **options, **task
        )
        state = _fairseq(weights, args=args, cfg=None, **extra)
    else:
        w2v_args = pretrained["cfg"]
        if inside == "Namespace":
            flat = {k: v for k, v in w2v_args["model"].items() if k != "_name"}
            w2v_args = argparse.Namespace(arch="wav2vec2", normalize=normalize, **flat)
        cfg = {
            "common": {"seed": 1},
            "task": {"_name": "audio_pretraining", "eval_wer_config": {"a": 1}, **task},
            "model": {
                "_name": "hubert_ctc" if kind == "Hubert" else "wav2vec_ctc",
                "w2v_args": w2v_args,
                "normalize": normalize,
                "data": "/lost",
                **options,
            },
        }
        state = _fairseq(weights, cfg=cfg, **extra)
    torch.save(state, path)
    return head
