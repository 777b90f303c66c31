"""What ``fairseq-generate`` runs: the models in their inference form, a decoder, and the files of
results."""

import os

import torch

from fairseq_speedup.data.manifest import check_post_process
from fairseq_speedup.decoding.beam_search.decoder import build_decoder
from fairseq_speedup.decoding.generator import CtcGenerator
from fairseq_speedup.decoding.language.boundaries import BOUNDARIES
from fairseq_speedup.decoding.language.words import Words
from fairseq_speedup.decoding.options import check_options, describe
from fairseq_speedup.decoding.results.files import result_files
from fairseq_speedup.decoding.results.scoring import check_scoring, of_generate
from fairseq_speedup.decoding.run import DecodingRun
from fairseq_speedup.decoding.windows import Windows
from fairseq_speedup.inference import form_of, to_inference_form
from fairseq_speedup.profiling.compute import ComputeMeter


def watch_for_inference(task, model) -> None:
    """fairseq-generate gives its config to the model, not to the task: takes it from there.

    Raises:
        ValueError: from the model's ``prepare_for_inference_``, options that do not go together
    """
    prepare = model.prepare_for_inference_

    def prepare_for_inference_(cfg):
        if cfg.common.fp16 and (cfg.common.cpu or not torch.cuda.is_available()):
            raise ValueError(
                "--fp16 is for GPUs: leave it out; --inference fp32, bf16 or int8 is faster on "
                "a CPU"
            )
        is_first = task.decoding_run is None  # of an ensemble
        task.decoding_run = DecodingRun(cfg)
        check_options(task.cfg, cfg.generation)
        check_post_process(task.cfg.labels, cfg.common_eval.post_process)
        labels = task.label_words.get(cfg.dataset.gen_subset)
        if labels is not None and is_first:
            check_scoring(labels, of_generate(cfg))
        return prepare(cfg)

    model.prepare_for_inference_ = prepare_for_inference_


def build_ctc_generator(task, models, args) -> CtcGenerator:
    """
    Args:
        task: a SpeedupFinetuningTask
        models: an ensemble
        args: fairseq's config of generation
    """
    check_options(task.cfg, args)
    blank = task.target_dictionary.index(task.blank_symbol)
    meter = ComputeMeter(models, task.sample_rate)
    meter.inference = [
        to_inference_form(model, form_of(task.cfg.inference, model)) for model in models
    ]
    training_labels = os.path.join(task.cfg.data, f"train.{task.cfg.labels}")
    run = task.decoding_run
    windows = _windows_of(task, blank, at_once=run.cfg.dataset.batch_size if run else None)
    decoder = build_decoder(
        task.cfg,
        args,
        task.target_dictionary,
        blank,
        training_labels,
        longest=windows.num_frames if windows else 0,
    )
    if run is None:
        return CtcGenerator(decoder, task.target_dictionary, blank, meter, windows=windows)
    words = Words.of_dictionary(task.target_dictionary)
    audio = getattr(task.datasets[run.cfg.dataset.gen_subset], "dataset", None)
    files = result_files(task.cfg, run.cfg, words, audio, task.lengths, task.sample_rate)
    joins = BOUNDARIES.get(run.cfg.common_eval.post_process) == (words.boundary or "")
    run.generator = CtcGenerator(
        *(decoder, task.target_dictionary, blank, meter, files, windows),
        words=words if joins else None,
    )
    run.decoding = describe(task.cfg, args)
    return run.generator


def _windows_of(task, blank: int, at_once: int | None) -> Windows | None:
    """What --window-seconds says."""
    if not task.cfg.window_seconds:
        return None
    if task.lengths is None:
        raise ValueError("--window-seconds: how this model changes lengths is not known")
    shortest = task.lengths.needed_samples() / task.sample_rate
    if task.cfg.window_overlap < 2 * shortest:  # two windows must have frames in common
        raise ValueError(
            f"--window-overlap {task.cfg.window_overlap} is too short for this model, whose "
            f"frames see {shortest:.2f} s: give {2 * shortest:.2f} or more"
        )
    return Windows.of_seconds(
        task.cfg.window_seconds,
        task.cfg.window_overlap,
        task.sample_rate,
        task.lengths.frame_grid(),
        task.lengths.logit_upsample,
        blank,
        at_once or 1,
    )
