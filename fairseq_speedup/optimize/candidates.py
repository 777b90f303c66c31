"""What can be tried on a model: a candidate is the model with some of its options changed, in a
form, in an engine, at a batch size and number of threads."""

import json
from dataclasses import dataclass, field, replace

from fairseq_speedup.transformer.layer_removal import parse_keep_layers

ENGINES = ("torch", "onnx", "onnx int8", "openvino", "openvino int8")
NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
REVERTED = "openvino int8"  # the engine of which parts can stay in fp32, for the words' sake
PRUNE_TARGETS = (0.9, 0.8, 0.7)  # shares of the MACs, mild first
# shares of the variance that linear layers keep, of attention and of the feed-forward
ENERGIES = ((0.99, 0.999), (0.99, 0.99), (0.98, 0.98), (0.97, 0.97))
# options that say what there is to make smaller; the others are of how it runs
OF_STRUCTURE = ("keep_layers", "exit_layers", "downsample_factor", "frame_pool", "width")
MERGE_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2)
EXIT_THRESHOLDS = {"entropy": (0.005, 0.02, 0.05, 0.1, 0.2)}  # nats, mild first
BATCH_SIZES = (4, 16)
BLANK_SKIP_THRESHOLDS = (0.999, 0.99, 0.95)
LEAST_BEAM = 5


@dataclass(frozen=True)
class Candidate:
    """
    overrides: of the model's options, by name
    form: of ``--inference``
    engine: one of ENGINES
    batch_size: utterances
    threads: of the CPU
    decoding: options of decoding that are not as the user gave them
    int8_budget: points of WER, for which parts of the engine REVERTED stay in fp32
    pruned: share of the MACs that pruning by importance leaves, None for all
    low_rank: shares of the variance that linear layers of low rank keep, [] for whole ones
    """

    overrides: dict = field(default_factory=dict)
    form: str = "none"
    engine: str = "torch"
    batch_size: int = 1
    threads: int = 1
    decoding: dict = field(default_factory=dict)
    int8_budget: float | None = None
    pruned: float | None = None
    low_rank: list[float] = field(default_factory=list)

    @property
    def key(self) -> str:
        """What it is, for the log."""
        return json.dumps(vars(self), sort_keys=True)

    @property
    def transcripts_key(self) -> str:
        """All that transcripts depend on."""
        engine = [self.engine, self.int8_budget]
        return json.dumps([self.macs_key, self.form, engine, self.decoding], sort_keys=True)

    @property
    def macs_key(self) -> str:
        """All that MACs depend on."""
        return json.dumps([self.overrides, self.pruned, self.low_rank], sort_keys=True)

    @property
    def start(self) -> dict:
        """Those of the options that a smaller checkpoint is made with."""
        return {k: v for k, v in self.overrides.items() if k in OF_STRUCTURE}

    @property
    def is_made(self) -> bool:
        """Whether it is of a smaller checkpoint, made of the model's."""
        return self.pruned is not None or bool(self.low_rank)

    @property
    def loaded(self) -> dict:
        """Options that its checkpoint is loaded with."""
        if not self.is_made:
            return self.overrides
        return {k: v for k, v in self.overrides.items() if k not in OF_STRUCTURE}

    def with_overrides(self, **overrides) -> "Candidate":
        return replace(self, overrides={**self.overrides, **overrides})

    def with_decoding(self, **options) -> "Candidate":
        return replace(self, decoding={**self.decoding, **options})

    def described(self, base: "Candidate") -> str:
        """What is other than in ``base``, as options are written."""
        said = []
        if self.engine != base.engine:
            engine, *precision = self.engine.split()
            said.append(" ".join([NAMES[engine], *precision]))
            if self.int8_budget is not None:
                said[-1] += f" within {self.int8_budget:g}"
        elif self.form != base.form:
            said.append(f"inference={self.form}")
        said += [f"{name}={value}" for name, value in self.overrides.items()]
        if self.pruned is not None:
            said.append(f"pruned to {self.pruned:g}")
        if self.low_rank:
            said.append(f"low rank at {' and '.join(map('{:g}'.format, self.low_rank))}")
        said += [f"{name}={value}" for name, value in self.decoding.items()]
        for name in ("batch_size", "threads"):
            if getattr(self, name) != getattr(base, name):
                said.append(f"{name}={getattr(self, name)}")
        return ", ".join(said) or "as it is"


@dataclass(frozen=True)
class Subject:
    """What a model can be changed in, as its worker found it.

    kept_layers: indices of its layers
    exits: of them, those with a head
    can_merge: frames may merge between its layers
    can_prune: it has transformer layers that nothing was cut out of
    can_lower_ranks: it has transformer layers whose linear layers are one matrix
    many: options of a model of many speeds, by name the values that it was trained for and the
        one that it runs at
    padding_gets_in: an utterance's numbers depend on its batch
    forms: of ``--inference`` that this machine runs fast
    engines: that are installed
    decoder: greedy or beam
    beam: hypotheses kept by it
    staying: indices of the layers that are not left out: others reuse their attention maps, or
        options name them
    """

    kept_layers: list[int]
    exits: list[int]
    can_merge: bool
    can_prune: bool
    many: dict
    padding_gets_in: bool
    forms: list[str]
    engines: list[str]
    decoder: str
    beam: int
    can_lower_ranks: bool = False
    staying: list[int] = field(default_factory=list)


def listed(layers: list[int]) -> str:
    """Layers as ``keep_layers`` takes them; a list of one ends with a comma."""
    return ",".join(map(str, layers)) + ("," if len(layers) == 1 else "")


def kept_of(candidate: Candidate, subject: Subject) -> list[int]:
    """Indices of the layers of a candidate."""
    kept = candidate.overrides.get("keep_layers")
    if kept is None:
        return subject.kept_layers
    return parse_keep_layers(kept, subject.kept_layers[-1] + 1)


def forms(candidate: Candidate, subject: Subject) -> list[Candidate]:
    return [replace(candidate, form=form) for form in subject.forms]


def engines(candidate: Candidate, subject: Subject) -> list[Candidate]:
    """Other engines, for a model that a graph can hold."""
    if candidate.overrides.get("exit_criterion", "none") != "none":
        return []
    return [
        replace(candidate, engine=each, form="none")
        for each in subject.engines
        if each != candidate.engine
    ]


def reverted(candidate: Candidate, subject: Subject, budget: float) -> list[Candidate]:
    """Likewise in int8, but for as many parts as the budget asks."""
    int8 = [each for each in engines(candidate, subject) if each.engine == REVERTED]
    return [replace(each, int8_budget=budget) for each in int8]


def without_a_layer(
    candidate: Candidate, subject: Subject, influence: dict[int, float], most: int
) -> list[Candidate]:
    """One layer less: each of the ``most`` that change their input least. The first and the last
    stay, and exits and merging as they are; so do all of a model of many depths, whose first layers
    are a model each."""
    kept = kept_of(candidate, subject)
    if len(kept) < 3 or "keep_layers" in subject.many:
        return []
    inner = [index for index in kept[1:-1] if index not in {*subject.exits, *subject.staying}]
    least = sorted(inner, key=influence.__getitem__)[:most]
    return [
        candidate.with_overrides(keep_layers=listed([each for each in kept if each != index]))
        for index in sorted(least, key=influence.__getitem__)
    ]


def cut_at_exits(candidate: Candidate, subject: Subject) -> list[Candidate]:
    """The layers up to an exit, whose head decides: fewer and fewer."""
    kept = kept_of(candidate, subject)
    before_last = [index for index in reversed(subject.exits) if index != kept[-1]]
    return [
        candidate.with_overrides(
            keep_layers=listed([each for each in kept if each <= index]), exit_layers="none"
        )
        for index in before_last
        if index in kept
    ]


def pruning(candidate: Candidate, subject: Subject) -> list[Candidate]:
    """Less and less of the parts that matter least, by importance on some audio."""
    if not subject.can_prune or "width" in candidate.overrides:  # nothing is cut twice
        return []
    return [replace(candidate, pruned=target) for target in PRUNE_TARGETS]


def low_ranks(candidate: Candidate, subject: Subject) -> list[Candidate]:
    """Linear layers of ever lower rank."""
    if not subject.can_lower_ranks:
        return []
    return [replace(candidate, low_rank=list(energies)) for energies in ENERGIES]


def early_exits(candidate: Candidate, subject: Subject) -> list[Candidate]:
    """Each utterance leaves where its posteriors are sure enough, ever earlier."""
    if not subject.exits or candidate.overrides.get("exit_layers") == "none":
        return []
    return [
        candidate.with_overrides(exit_criterion=criterion, exit_threshold=threshold)
        for criterion, thresholds in EXIT_THRESHOLDS.items()
        for threshold in thresholds
    ]


def merging(candidate: Candidate, subject: Subject) -> list[Candidate]:
    """Ever more frames merge."""
    if not subject.can_merge or len(kept_of(candidate, subject)) < 2:
        return []
    return [candidate.with_overrides(merge_ratio=ratio) for ratio in MERGE_RATIOS]


def speeds(candidate: Candidate, subject: Subject) -> list[Candidate]:
    """The other speeds of a model of many."""
    found = []
    for name, (values, chosen) in subject.many.items():
        if name == "width" and candidate.is_made:  # of one width
            continue
        if name == "keep_layers":
            faster = [str(each) for each in sorted(values, reverse=True) if each < chosen]
        elif name == "width":
            faster = sorted((each for each in values if each < chosen), reverse=True)
        else:
            faster = sorted(each for each in values if each > chosen)
        found += [candidate.with_overrides(**{name: each}) for each in faster]
    return found


def decoders(candidate: Candidate, subject: Subject) -> list[Candidate]:
    """A beam search over fewer frames or hypotheses."""
    if subject.decoder != "beam":
        return []
    skipping = [
        candidate.with_decoding(blank_skip_threshold=each) for each in BLANK_SKIP_THRESHOLDS
    ]
    beams, beam = [], subject.beam // 2
    while beam >= LEAST_BEAM:
        beams.append(candidate.with_decoding(beam=beam))
        beam //= 2
    return skipping + beams


def schedules(candidate: Candidate, subject: Subject, num_cores: int) -> list[Candidate]:
    """Other batch sizes and numbers of threads, which no transcript depends on."""
    found = []
    if not subject.padding_gets_in:
        found += [replace(candidate, batch_size=each) for each in BATCH_SIZES]
    threads = 1
    while threads <= num_cores:
        if threads != candidate.threads:
            found.append(replace(candidate, threads=threads))
        threads *= 2
    return found
