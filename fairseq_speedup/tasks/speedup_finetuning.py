"""``speedup_finetuning``: fairseq's ``audio_finetuning`` for CTC models, with decoding."""

import logging
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.data import Dictionary, FileAudioDataset
from fairseq.dataclass.utils import gen_parser_from_dataclass, merge_with_parent
from fairseq.models.wav2vec.wav2vec2_asr import Wav2VecCtc
from fairseq.scoring.wer import WerScorerConfig
from fairseq.tasks import register_task
from fairseq.tasks.audio_finetuning import AudioFinetuningConfig, AudioFinetuningTask
from omegaconf import DictConfig, OmegaConf

from fairseq_speedup.checkpoints import CheckpointError
from fairseq_speedup.criterions.frontend_match import reduce_frontend_loss
from fairseq_speedup.data.audio import CheckedAudioDataset
from fairseq_speedup.data.dictionary import difference, read_dictionary
from fairseq_speedup.data.feasibility import check_feasibility, report_feasibility
from fairseq_speedup.data.manifest import (
    ManifestError,
    check_post_process,
    infer_labels,
    read_labels,
    read_manifest,
)
from fairseq_speedup.data.noise import NoiseConfig, check_noise, in_noise
from fairseq_speedup.data.split_checks import check_lengths, check_symbols
from fairseq_speedup.decoding.beam import build_decoder
from fairseq_speedup.decoding.boundaries import BOUNDARIES, LabelWords, check_scoring
from fairseq_speedup.decoding.generator import CtcGenerator
from fairseq_speedup.decoding.options import DecodingOptions, check_options, describe
from fairseq_speedup.decoding.results import result_files
from fairseq_speedup.decoding.run import DecodingRun
from fairseq_speedup.decoding.scoring import of_generate
from fairseq_speedup.decoding.windows import Windows
from fairseq_speedup.decoding.words import Words
from fairseq_speedup.inference import InferenceConfig, form_of, to_inference_form
from fairseq_speedup.models.config import reduction_options
from fairseq_speedup.models.exported_ctc import KIND, ExportedCtc, ExportedLengths
from fairseq_speedup.models.lengths import model_lengths
from fairseq_speedup.models.overrides import FINETUNED_MODELS
from fairseq_speedup.models.speeds import Speeds
from fairseq_speedup.models.speedup_ctc import SpeedupCtc
from fairseq_speedup.profiling.compute import ComputeMeter
from fairseq_speedup.profiling.training import (
    ForwardTimer,
    TrainingProfile,
    reduce_compute_metrics,
)
from fairseq_speedup.relative_paths import looked_for
from fairseq_speedup.sweeps import forget_earlier_training
from fairseq_speedup.tasks.criterion_checks import (
    check_criterion_options,
    check_trains_all,
    check_wer_of_validation,
)
from fairseq_speedup.tasks.matching import FrontEndMatching

logger = logging.getLogger(__name__)

WITHOUT_LABELS = "; python -m fairseq_speedup transcribe decodes audio files without labels"
# of a batch: the option, by whether it is of training
MAX_SAMPLES = {True: "dataset.max_tokens", False: "dataset.max_tokens_valid"}


@dataclass
class SpeedupFinetuningConfig(InferenceConfig, DecodingOptions, NoiseConfig, AudioFinetuningConfig):
    allow_infeasible_ctc: bool = field(
        default=False,
        metadata={
            "help": "train even if more than half of the utterances have fewer output frames "
            "than CTC needs for their labels"
        },
    )


@register_task("speedup_finetuning", dataclass=SpeedupFinetuningConfig)
class SpeedupFinetuningTask(AudioFinetuningTask):
    """Fine-tunes and decodes CTC models, ours and stock ``wav2vec_ctc``.

    Beyond fairseq's task: data are checked before training, every utterance is used, compute is
    logged, and stock ``fairseq-generate`` decodes.
    """

    cfg: SpeedupFinetuningConfig

    def __init__(self, cfg: SpeedupFinetuningConfig):
        super().__init__(cfg)
        self.sample_rate = cfg.sample_rate  # in Hz; a checkpoint's own when decoding
        self.lengths: Any = None  # of the model being trained or decoded
        self.label_words: dict[str, LabelWords] = {}  # of splits that are scored
        self.post_process = None  # the criterion's, of its wer
        self.has_exits = self.has_gates = False
        self.exit_heads_only = False
        self.speeds: Speeds | None = None  # of a model that is trained at one or at many
        self.frame_dim: int | None = None  # of its transformer
        self.matching: FrontEndMatching | None = None
        self.profile: TrainingProfile  # set with the model
        self.zero_infinity = True
        self.decoding_run: DecodingRun | None = None

    @classmethod
    def add_args(cls, parser):
        """fairseq's, with WER where the command line names no --scoring: its default is BLEU."""
        super().add_args(parser)
        parser.set_defaults(scoring="wer")
        gen_parser_from_dataclass(parser, WerScorerConfig())  # for which fairseq looks too early

    # -- dictionary ------------------------------------------------------------------------------

    @classmethod
    def with_dictionary(cls, cfg, dictionary: Dictionary) -> "SpeedupFinetuningTask":
        """A task that has its dictionary already, and reads none from ``cfg.data``."""
        task = cls(cfg)
        task.state.merge_state_dict({"target_dictionary": dictionary})
        return task

    @classmethod
    def around(cls, model, cfg, loaded) -> "SpeedupFinetuningTask":
        """A task of ours for a model that was loaded, which decodes stock models too.

        Args:
            cfg, loaded: the whole config and the task that the model was loaded with
        """
        task = cls.with_dictionary(completed(cfg.task), loaded.target_dictionary)
        task.lengths = model_lengths(model)
        return task

    def load_target_dictionary(self):
        if not self.cfg.labels:
            self.cfg.labels = infer_labels(self.cfg.data)
        folder = self.cfg.target_dictionary or self.cfg.data
        path = os.path.join(folder, f"dict.{self.cfg.labels}.txt")
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"dictionary {path} does not exist (task.labels={self.cfg.labels}); "
                f"each of its lines is a label and a count{looked_for(path)}"
            )
        dictionary = read_dictionary(path)
        if len(dictionary) == dictionary.nspecial:
            raise ManifestError(f"dictionary {path} is empty")
        return dictionary

    def load_state_dict(self, state_dict):
        """Takes the dictionary from a checkpoint, which must agree with the data's."""
        ours = self.state.state_dict.get("target_dictionary")
        self.check_same_dictionary(ours, state_dict.get("target_dictionary"))
        super().load_state_dict(state_dict)

    def check_same_dictionary(self, ours: Dictionary | None, theirs: Dictionary | None) -> None:
        """
        Args:
            ours: of the data, None where it is not known
            theirs: likewise, of a checkpoint
        Raises:
            ManifestError: they differ
        """
        if ours is not None and theirs is not None and ours.symbols != theirs.symbols:
            found = difference(ours.symbols, theirs.symbols)
            raise ManifestError(
                f"the dictionary in {self.cfg.data} has {len(ours)} symbols and is not the "
                f"checkpoint's, which has {len(theirs)}: {found}; "
                "use the dict file that the model was fine-tuned with"
            )

    # -- model and criterion ---------------------------------------------------------------------

    def build_model(self, model_cfg, from_checkpoint=False):
        if from_checkpoint and model_cfg._name not in [*FINETUNED_MODELS, KIND]:  # nor is it built
            raise _other_kind(model_cfg)
        if not from_checkpoint:
            forget_earlier_training()
            check_noise(self.cfg)
            self._check_start()
        elif model_cfg.get("widths"):  # of training; once loaded, a model has one
            model_cfg.widths = []
        model = super().build_model(model_cfg, from_checkpoint)
        if isinstance(model, ExportedCtc):
            self.lengths = ExportedLengths(model.session.metadata)
            self._watch_for_inference(model)
            return model
        if not hasattr(model, "w2v_encoder"):
            raise _other_kind(model_cfg)
        if isinstance(model, SpeedupCtc):
            # with w2v_args, which fairseq takes from the model into the checkpoint
            for name, value in reduction_options(model.cfg).items():
                model_cfg[name] = value
        self.lengths = model_lengths(model)
        self.has_exits = getattr(model.w2v_encoder, "exit", None) is not None
        self.has_gates = getattr(model.w2v_encoder, "pruning", None) is not None
        self.exit_heads_only = model_cfg.get("exit_heads_only", False)
        self.speeds = getattr(model.w2v_encoder, "speeds", None)
        self.frame_dim = model.w2v_encoder.w2v_model.encoder.embedding_dim
        if getattr(model.w2v_encoder, "cnn_teacher", None) is not None:
            self.matching = FrontEndMatching(self, model_cfg.frontend_match_updates)
            self.matching.check_updates_left(
                self._of_training("optimization.max_update") or 0,
                without_labels=bool(self._of_training("dataset.disable_validation")),
            )
        self.profile = TrainingProfile(model, self.sample_rate)
        if from_checkpoint:
            self._watch_for_inference(model)
            self._watch_for_other_labels(model)
        return model

    def _check_start(self) -> None:
        """That the training starts from what it is told to: fairseq takes a folder for a checkpoint
        that is not there yet, and says nothing.

        Raises:
            CheckpointError: naming the option
        """
        for name in ("finetune_from_model", "restore_file"):
            path = self._of_training(f"checkpoint.{name}")
            if path and os.path.isdir(path):
                raise CheckpointError(
                    f"checkpoint.{name}={path} is a folder, which fairseq would pass over; it must "
                    "be a file. Of a folder in Hugging Face's form, python -m fairseq_speedup "
                    f"convert {path} MODEL.pt makes one, and model.w2v_path takes it as it is, "
                    "with its head where the labels agree"
                )

    def _of_training(self, option: str):
        """A value of the whole config, where the task has it."""
        if not OmegaConf.is_config(self.cfg):
            return None
        return OmegaConf.select(self.cfg._get_root(), option)

    def build_criterion(self, cfg: DictConfig, from_checkpoint=False):
        if not from_checkpoint:
            check_criterion_options(cfg)
        if cfg.get("post_process") is not None:
            check_post_process(self.cfg.labels, cfg.post_process, option="criterion.post_process=")
        check_trains_all(cfg._name, self.has_exits, self.has_gates, self.exit_heads_only)
        self.zero_infinity = cfg.get("zero_infinity", True)
        self.post_process = cfg.get("post_process")
        return super().build_criterion(cfg, from_checkpoint)

    def _watch_for_inference(self, model) -> None:
        """fairseq-generate gives its config to the model, not to the task: take it from there."""
        prepare = model.prepare_for_inference_

        def prepare_for_inference_(cfg):
            if cfg.common.fp16 and (cfg.common.cpu or not torch.cuda.is_available()):
                raise ValueError(
                    "--fp16 is for GPUs: leave it out; --inference fp32, bf16 or int8 is faster on "
                    "a CPU"
                )
            is_first = self.decoding_run is None  # of an ensemble
            self.decoding_run = DecodingRun(cfg)
            check_options(self.cfg, cfg.generation)
            check_post_process(self.cfg.labels, cfg.common_eval.post_process)
            labels = self.label_words.get(cfg.dataset.gen_subset)
            if labels is not None and is_first:
                check_scoring(labels, of_generate(cfg))
            return prepare(cfg)

        model.prepare_for_inference_ = prepare_for_inference_

    def _watch_for_other_labels(self, model) -> None:
        """Old checkpoints have no dictionary: the size of their head tells whether it is ours."""
        head, num_labels = model.w2v_encoder.proj, len(self.target_dictionary)

        def check(module, state_dict, prefix, *unused):
            weight = state_dict.get(f"{prefix}weight")
            if weight is not None and weight.size(0) != num_labels:
                raise ManifestError(
                    f"the dictionary in {self.cfg.data} has {num_labels} symbols and is not the "
                    f"checkpoint's, which has {weight.size(0)}; use the dict file that the model "
                    "was fine-tuned with"
                )

        if isinstance(model, Wav2VecCtc) and not isinstance(model, SpeedupCtc):
            head.register_load_state_dict_pre_hook(check)

    # -- data ------------------------------------------------------------------------------------

    def load_dataset(self, split: str, task_cfg=None, **kwargs):
        """Loads a split with its labels, checked.

        Args:
            task_cfg: given by fairseq-generate, the task config of the checkpoint
            kwargs: fairseq's trainer gives ``data_selector`` for the training split alone
        Raises:
            FileNotFoundError, ManifestError, BadUtteranceError: naming the file and the line
        """
        decoding = task_cfg is not None
        if decoding:
            task_cfg = completed(task_cfg)
            task_cfg.labels = self.cfg.labels or task_cfg.labels
            # of training: fairseq would cut long utterances and leave out short ones
            task_cfg.max_sample_size = task_cfg.min_sample_size = None
            self.sample_rate = task_cfg.sample_rate
        cfg = task_cfg or self.cfg
        if cfg.multi_corpus_keys is not None or cfg.binarized_dataset:
            logger.warning("%s: binarized and multi-corpus data are not checked", split)
            super().load_dataset(split, task_cfg, **kwargs)
            return
        manifest = read_manifest(os.path.join(self.cfg.data, f"{split}.tsv"))
        labels_path = os.path.join(self.cfg.data, f"{split}.{cfg.labels}")
        labels = read_labels(labels_path, manifest, WITHOUT_LABELS if decoding else "")
        training = "data_selector" in kwargs
        if not training:
            self.label_words[split] = LabelWords.of(labels_path, labels)
            if not decoding:
                check_wer_of_validation(self.label_words[split], self.post_process)
        super().load_dataset(split, task_cfg, **kwargs)

        with_labels = self.datasets[split]
        if not isinstance(with_labels.dataset, FileAudioDataset):
            logger.warning("%s: a subsample is not checked", split)
            return
        audio = CheckedAudioDataset.of(with_labels.dataset, split, skip_bad=training)
        with_labels.dataset = audio
        skipped = audio.skipped_indices
        labels = [line for row, line in enumerate(labels) if row not in skipped]
        audio.root_dir = manifest.root  # fairseq's has the byte order mark of the file
        if labels:  # so has its first line of labels
            with_labels.labels[0] = with_labels.text_compressor.compress(" ".join(labels[0]))
        check_symbols(audio, labels, self.target_dictionary, self.cfg.labels)
        if self.lengths is not None:
            check_lengths(audio, self.lengths.needed_samples(any_speed=training))
        if not decoding and not training:  # now, and not after an epoch
            limit = self._of_training("dataset.max_tokens_valid")
            audio.check_fits(limit, MAX_SAMPLES[training])
        if not decoding and self.lengths is not None:
            used = ~audio.left_out
            frames = self.lengths.ctc_lengths(audio.sizes[used], any_speed=training)
            used_labels = [line for line, keep in zip(labels, used, strict=True) if keep]
            report_feasibility(
                split,
                check_feasibility(frames, used_labels),
                self.cfg.allow_infeasible_ctc,
                self.zero_infinity,
            )

    def get_batch_iterator(self, dataset, max_tokens=None, max_sentences=None, **kwargs):
        """fairseq's, except that ``required_batch_size_multiple`` is always 1: fairseq drops the
        last batch where it is no multiple, in training, validation and decoding."""
        run = self.decoding_run
        if run is not None:
            in_windows = self.cfg.window_seconds > 0
            max_tokens = run.admit_longest(dataset, max_tokens, max_sentences, in_windows)
            kwargs |= {"num_shards": run.num_shards, "shard_id": run.shard_id}
        else:
            audio = getattr(dataset, "dataset", None)
            if isinstance(audio, CheckedAudioDataset):
                audio.check_fits(max_tokens, MAX_SAMPLES[audio.skip_bad])
        kwargs["required_batch_size_multiple"] = 1
        iterator = super().get_batch_iterator(
            dataset, max_tokens=max_tokens, max_sentences=max_sentences, **kwargs
        )
        if run is not None:
            run.watch(iterator, dataset)
        return iterator

    # -- steps -----------------------------------------------------------------------------------

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        sample = in_noise(sample, self.cfg)
        if self.matching is not None:
            criterion = self.matching.criterion_of(update_num, model, criterion, optimizer)
        loss, sample_size, logging_output = super().train_step(
            sample, model, criterion, optimizer, update_num, ignore_grad
        )
        # for a dummy batch too: workers sum their logs, which must have the same keys
        logging_output.update(self.profile.cost(sample))
        return loss, sample_size, logging_output

    def valid_step(self, sample, model, criterion):
        with ForwardTimer(model) as timer:
            loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
        logging_output.update(self.profile.cost(sample), _model_seconds=timer.seconds)
        return loss, sample_size, logging_output

    def reduce_metrics(self, logging_outputs, criterion):
        super().reduce_metrics(logging_outputs, criterion)
        reduce_compute_metrics(logging_outputs)
        reduce_frontend_loss(logging_outputs)

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **unused):
        """A CTC generator for ``fairseq-generate`` (and for anything that drives a generator)."""
        check_options(self.cfg, args)
        blank = self.target_dictionary.index(self.blank_symbol)
        meter = ComputeMeter(models, self.sample_rate)
        meter.inference = [
            to_inference_form(model, form_of(self.cfg.inference, model)) for model in models
        ]
        training_labels = os.path.join(self.cfg.data, f"train.{self.cfg.labels}")
        run = self.decoding_run
        windows = self._windows(blank, at_once=run.cfg.dataset.batch_size if run else None)
        decoder = build_decoder(
            self.cfg,
            args,
            self.target_dictionary,
            blank,
            training_labels,
            longest=windows.num_frames if windows else 0,
        )
        if run is None:
            return CtcGenerator(decoder, self.target_dictionary, blank, meter, windows=windows)
        words = Words.of_dictionary(self.target_dictionary)
        audio = getattr(self.datasets[run.cfg.dataset.gen_subset], "dataset", None)
        files = result_files(self.cfg, run.cfg, words, audio, self.lengths, self.sample_rate)
        joins = BOUNDARIES.get(run.cfg.common_eval.post_process) == (words.boundary or "")
        run.generator = CtcGenerator(
            *(decoder, self.target_dictionary, blank, meter, files, windows),
            words=words if joins else None,
        )
        run.decoding = describe(self.cfg, args)
        return run.generator

    def _windows(self, blank: int, at_once: int | None) -> Windows | None:
        """What --window-seconds says."""
        if not self.cfg.window_seconds:
            return None
        if self.lengths is None:
            raise ValueError("--window-seconds: how this model changes lengths is not known")
        shortest = self.lengths.needed_samples() / self.sample_rate
        if self.cfg.window_overlap < 2 * shortest:  # two windows must have frames in common
            raise ValueError(
                f"--window-overlap {self.cfg.window_overlap} is too short for this model, whose "
                f"frames see {shortest:.2f} s: give {2 * shortest:.2f} or more"
            )
        return Windows.of_seconds(
            self.cfg.window_seconds,
            self.cfg.window_overlap,
            self.sample_rate,
            self.lengths.frame_grid(),
            self.lengths.logit_upsample,
            blank,
            at_once or 1,
        )


def _other_kind(model_cfg) -> CheckpointError:
    return CheckpointError(
        f"this task fine-tunes and decodes {' and '.join(FINETUNED_MODELS)} models, not "
        f"{model_cfg._name}; a pretrained checkpoint is given as model.w2v_path"
    )


def completed(task_cfg) -> DictConfig:
    """A checkpoint's task config with the fields that its fairseq did not have yet."""
    cfg = OmegaConf.create(OmegaConf.to_container(task_cfg, enum_to_str=True))
    cfg.tpu = False  # fairseq's default looks it up in the whole config, which is not here
    return merge_with_parent(SpeedupFinetuningConfig(), cfg, remove_missing=True)
