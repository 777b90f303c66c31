"""What fine-tuning would add to a model: what is offered, those first that save most for what they
are expected to lose."""

from dataclasses import dataclass, replace

from fairseq_speedup.optimize.candidates import Subject

MOST = 4
FEW_HOURS = 10  # of labels: below them a shorter waveform comes last


@dataclass(frozen=True)
class Suggestion:
    """
    options: of fairseq-hydra-train
    share: of the MACs that are left
    expectation: words about what it loses, with their source
    then: what comes after the training, in words; empty where nothing does
    matches: a new front-end first, in a quarter of twice the updates
    unless: an option; not offered where that can be changed
    """

    options: tuple[str, ...]
    share: float
    expectation: str
    then: str = ""
    matches: bool = False
    unless: str = ""

    @property
    def changed(self) -> list[str]:
        """Names of its options, the one that decides its place first."""
        return [each.removeprefix("model.").split("=")[0] for each in self.options]


STUDY = "arXiv 2303.06740, WavLM Large, 100 h of labels"
HERE = "examples/study/RESULTS.md, a small HuBERT, one hour of labels"
RECORDED = "examples/recorded/RESULTS.md, a small HuBERT, 0.6 h of labels, three seeds"
ONE_SEED = "examples/recorded/RESULTS.md, a small HuBERT, 0.6 h of labels, one seed"

OF_FILTERBANKS = (
    "in noise more is lost, less where training hears it, by task.noise_snr=[0,25] "
    "(docs/fine-tune.md#noise); with more audio of synthetic voices filterbanks gained nothing "
    f"({HERE})"
)
FEWER_LAYERS = "model.keep_layers={}"  # as many as there are to keep

SUGGESTIONS = (
    Suggestion(
        ("model.prune_target=0.5",),
        0.5,
        f"WER 15.5 to 15.3, -2.4 to +2.1 points, with a teacher as here, 17.2 without ({RECORDED})",
        "python -m fairseq_speedup prune checkpoints/checkpoint_last.pt --output pruned.pt, in "
        "Hydra's folder of that training; then train on, with model.w2v_path=$PWD/pruned.pt, "
        "without model.prune_target and with the teacher",
    ),
    Suggestion(
        ("model.frontend=fbank", "model.frame_pool=2"),
        0.54,
        "WER 14.9 to 11.8, -5.7 to -0.6 points, with a teacher as here, 16.6 in half the updates "
        f"({RECORDED}); {OF_FILTERBANKS}",
        matches=True,
    ),
    Suggestion(
        ("model.frontend=fbank", "model.frame_pool=2", FEWER_LAYERS),
        0.41,
        f"WER 14.9 to 12.3, -5.0 to -0.2 points, with a teacher as here ({RECORDED}); "
        f"{OF_FILTERBANKS}",
        matches=True,
    ),
    Suggestion(
        ("model.downsample=conv", "model.downsample_factor=2"),
        0.5,
        f"WER 4.09 to 4.61 ({STUDY}); 15.5 to 22.9 ({RECORDED}): it needs many labels and updates; "
        "with few, model.frontend_match_updates has the CNN learn the shorter waveform first, from "
        "audio alone (docs/fine-tune.md)",
    ),
    Suggestion(
        ("model.frame_pool=2",),
        0.59,
        "WER 15.5 to 14.8, -2.7 to +1.4 points, with a teacher as here, 16.7 without "
        f"({RECORDED}); 39.3 to 48.2 after 500 short updates ({HERE})",
    ),
    Suggestion(
        ("model.frame_pool=2", FEWER_LAYERS),
        0.47,
        f"WER 16.7 to 16.3, on valid 17.0 to 19.8, with a teacher as here ({ONE_SEED})",
        unless="frontend",
    ),
    Suggestion(
        (FEWER_LAYERS,),
        0.74,
        f"WER 15.5 to 17.4, without a teacher ({RECORDED}); 39.3 to 41.5 ({HERE})",
    ),
)
# with few labels, by the first option
BY_NEED = ("frame_pool", "frontend", "prune_target", "keep_layers", "downsample")


def can_change(option: str, subject: Subject, reduced: dict) -> bool:
    """Whether training can reduce a model by an option: of its name in SUGGESTIONS."""
    if option == "prune_target":
        return subject.can_prune
    if option == "keep_layers":
        return option not in reduced and len(subject.kept_layers) > 2 and not subject.exits
    if option in ("downsample", "frontend"):  # a front-end hears the whole waveform
        return not {"downsample", "frontend"} & reduced.keys()
    return option not in reduced


def suggestions(subject: Subject, reduced: dict, hours: float) -> list[Suggestion]:
    """
    Args:
        reduced: options of the model that are on already; those of one stage are not offered again
        hours: of labelled audio that there is to train with, 0 where it is not known
    """

    def free(option: str) -> bool:
        return can_change(option, subject, reduced)

    kept = max(1, round(2 * len(subject.kept_layers) / 3))
    found = [
        replace(each, options=tuple(option.format(kept) for option in each.options))
        for each in SUGGESTIONS
        if all(map(free, each.changed)) and not (each.unless and free(each.unless))
    ]
    if hours < FEW_HOURS:
        found.sort(key=lambda each: BY_NEED.index(each.changed[0]))
    return found[:MOST]
