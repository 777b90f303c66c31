"""What the documents say can be typed: each command parses as its program parses it, each option
exists, each file and link is there. Commands that need a download are parsed all the same."""

import ast
import importlib
import re
import shlex
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import pytest
from fairseq import options as fairseq_options
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from helpers.commands import REPO, USER_DIR
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import fairseq_speedup.plugin  # noqa: F401, registers all that commands name
from fairseq_speedup.commands import COMMANDS, TASKS, build_parser
from fairseq_speedup.config import SpeedupCtcConfig
from fairseq_speedup.frames import FRAME_POOLS
from fairseq_speedup.frontend.config import FRONT_ENDS
from fairseq_speedup.heads import HEADS
from fairseq_speedup.transformer.early_exit import EXIT_CRITERIA
from fairseq_speedup.waveform import WAVEFORM_REDUCTIONS

PAGES = [*REPO.glob("*.md"), *REPO.glob("docs/*.md"), *REPO.glob("examples/*/*.md")]
PAGES = sorted(page.relative_to(REPO).as_posix() for page in [*PAGES, *REPO.glob("tests/*.md")])
MANUAL = [page for page in PAGES if page.startswith("docs/") and page != "docs/README.md"]
FRONT_PAGE_LINES = 150

# programs of others, and what only a download brings: nothing here can try these
UNTRIED = {
    "apt-get download asterisk-core-sounds-en asterisk-core-sounds-en-g722": "a download",
    'for package in asterisk-core-sounds-en*.deb; do dpkg -x "$package" prompts; done': "the same",
    "ffmpeg -v error -i film.mp4 -f wav -": "any program that writes audio",
    'python -c "import torchaudio"': "no command of this project",
    "pip uninstall -y torchaudio": "the same",
    "source .venv/bin/activate": "made by both of the front page's commands",
}
# options in prose that are no option of a command tried here
OTHERS_OPTIONS = {
    "--dist": "pytest's",
    "--user-dir": "of ours before the command, and fairseq's",
    "--config-dir": "Hydra's",
    "--config-name": "Hydra's",
}
# columns of a table that belong to other programs
OTHERS_COLUMNS = {"docs/coming-from-elsewhere.md": {"infer.py": 2, "there": 1}}
NOT_IN_THE_TREE = {
    "examples/data2vec",  # fairseq's, and those below
    "examples/speech_recognition/infer.py",
    "examples/speech_recognition/new/infer.py",
    "examples/quickstart/out",  # written by it
}
IN_PLACE_OF_DOTS = {  # `...` in a command: what the page has said before
    "fairseq-generate": ["--task", "speedup_finetuning", "--path", "checkpoint_best.pt"],
    "fairseq-hydra-train": [
        *("--config-dir", "config/finetuning", "--config-name", "base_100h"),
        *("task.data=DATA", "model.w2v_path=pretrained.pt"),
    ],
}
REGISTRIES = {
    "task": TASK_DATACLASS_REGISTRY,
    "model": MODEL_DATACLASS_REGISTRY,
    "criterion": CRITERION_DATACLASS_REGISTRY,
}
OURS = {
    "task": ["speedup_finetuning"],
    "model": ["speedup_ctc", "distilled_student"],
    "criterion": [
        *("ctc", "ctc_pruning", "ctc_exits"),
        *("ctc_distillation", "ctc_in_place_distillation"),
        *("layer_distillation", "gram_distillation"),
    ],
}
GROUPS = [each.name for each in fields(FairseqConfig) if is_dataclass(each.type)] + list(OURS)
GROUP_OPTION = re.compile(rf"[+~]?({'|'.join(GROUPS)})\.(\w+)(?:=(.*))?")
VALUES = {
    "downsample": WAVEFORM_REDUCTIONS,
    "frontend": FRONT_ENDS,
    "frame_pool_method": FRAME_POOLS,
    "exit_criterion": EXIT_CRITERIA,
    "head": HEADS,
}
OF_ONES_OWN = {"attentive"}  # examples/extending, registered by a user directory


# -- reading a page --------------------------------------------------------------------------------


@cache
def text_of(page: str) -> str:
    return (REPO / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.M | re.S)


def prose(page: str) -> str:
    """Without fenced blocks, and without the columns of other programs."""
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S)
    columns, lines = 0, []
    for line in text.splitlines():
        cells = re.split(r"(?<!\\)\|", line)
        if not line.startswith("|"):
            columns = 0
        elif not columns:
            first = cells[1].strip().strip("`")
            columns = OTHERS_COLUMNS.get(page, {}).get(first, 0)
        lines.append("|".join(cells[columns + 1 :]) if columns else line)
    return "\n".join(lines)


def spans(page: str) -> list[str]:
    """What stands between backticks in the text."""
    found = re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))
    return [" ".join(span.split()) for span in found]


def words_of(line: str) -> list[str]:
    return [word.replace("$PWD", str(REPO)) for word in shlex.split(line, comments=True)]


def commands_of(block: str) -> list[str]:
    """The commands of a block of shell, one a line, without comments."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)#.*", "", " ".join(line.split())).strip()
        if line in UNTRIED:
            found.append(line)
        elif line:
            found += [each.strip() for each in re.split(r" (?:&&|\|\||\|) ", line)]
    return found


def printed() -> list[tuple[str, str]]:
    """Page and command of all blocks of shell."""
    return [
        (page, command)
        for page in PAGES
        for block in blocks(page, "bash")
        for command in commands_of(block)
    ]


def mentioned() -> list[tuple[str, str]]:
    """Page and command of those in the text, which may leave out what they need."""
    programs = (*CHECKS, *COMMANDS)
    return sorted(
        {
            (page, span)
            for page in PAGES
            for span in spans(page)
            if span.split()[0] in programs and " " in span
        }
    )


# -- parsing a command as its program does ---------------------------------------------------------


def our_command(words: list[str], whole: bool) -> None:
    """``python -m fairseq_speedup`` and what follows."""
    parser = build_parser()
    (subparsers,) = parser._subparsers._group_actions
    if not whole:
        for action in [each for sub in subparsers.choices.values() for each in sub._actions]:
            action.required = False
            if action.nargs in (None, "+"):
                action.nargs = "?" if action.option_strings else "*"
    given = [word for word in words if word != "..."]
    args = parser.parse_args(given)
    if args.user_dir:
        assert (REPO / args.user_dir / "__init__.py").is_file()
    if args.command == "profile":
        check_model_options(OmegaConf.from_dotlist(args.options))
    check_overrides(getattr(args, "model_overrides", "{}"))
    for each in [getattr(args, "config", None), getattr(args, "rows", None)]:
        assert each is None or each == "FILE" or (REPO / each).is_file(), each


def check_overrides(text) -> None:
    check_model_options(ast.literal_eval(text) if isinstance(text, str) else text)


def check_model_options(given) -> None:
    """Raises for a name, type or value that no option of ``speedup_ctc`` has; what needs another
    option of the model is for the model."""
    OmegaConf.merge(model_options(), OmegaConf.create(dict(given)))
    for option, valid in VALUES.items():
        assert given.get(option, "none") in {"none", *valid, *OF_ONES_OWN}, f"{option} of {given}"


@cache
def model_options():
    return OmegaConf.structured(SpeedupCtcConfig)


def generation_parser(words: list[str]):
    """Options that fairseq-generate has with these words, and what it takes them for."""
    parser = fairseq_options.get_generation_parser()
    parser.add_argument("--arch", default="wav2vec2")  # as fairseq-generate itself
    args = fairseq_options.parse_args_and_arch(parser, ["--user-dir", str(USER_DIR), *words])
    return parser._option_string_actions, args


def generate(words: list[str], whole: bool) -> None:
    """By fairseq's own parser. A user directory must be there; the parser is given this package."""
    if not whole or "..." in words:
        has_data = words[:1] and not words[0].startswith(("-", "."))
        words = [*([] if has_data else ["DATA"]), *words, *IN_PLACE_OF_DOTS["fairseq-generate"]]
    words = [word for word in words if word != "..."]
    if "--user-dir" in words:
        at = words.index("--user-dir")
        assert Path(words[at + 1], "__init__.py").is_file(), words[at + 1]
        words = words[:at] + words[at + 2 :]
    check_overrides(generation_parser(words)[1].model_overrides)


def hydra_train(words: list[str], whole: bool) -> None:
    """Composed as fairseq-hydra-train composes it, and merged with fairseq's schemas."""
    if not whole or "..." in words:
        words = [*IN_PLACE_OF_DOTS["fairseq-hydra-train"], *words]
    words = [word for word in words if word != "..."]
    folder, name = (words[words.index(each) + 1] for each in ("--config-dir", "--config-name"))
    given = [word for word in words[4:] if word != "-m"]
    store = ConfigStore.instance().repo
    before = set(store)
    hydra_init(name)
    try:
        with initialize_config_dir(str(REPO / folder), version_base="1.1"):
            cfg = compose(name, overrides=[re.sub(r"=\.\.\.$", "=given", each) for each in given])
    finally:
        for each in {f"{name}.yaml", *(f"{each.name}.yaml" for each in fields(FairseqConfig))}:
            if each not in before:  # other tests compose without fairseq's schemas
                store.pop(each, None)
    add_defaults(cfg)
    folder = Path(cfg.common.user_dir)
    assert folder.name == "fairseq_speedup" or (folder / "__init__.py").is_file(), folder
    if cfg.model._name == "speedup_ctc":
        check_model_options(cfg.model)


def study(words: list[str]) -> None:
    """One run of a grid: its config, and the row that is asked for."""
    folder, name = (words[words.index(each) + 1] for each in ("--config-dir", "--config-name"))
    folder = REPO / ("examples/study" if folder == "." else folder)
    given = [word for word in words[5:] if word != "-m"]
    with initialize_config_dir(str(folder), version_base="1.1"):
        cfg = compose(name, overrides=given)
    rows = OmegaConf.load(folder / "rows.yaml")
    for row in [each.split("=")[1] for each in given if each.startswith("row=")]:
        assert row in rows, row
    assert cfg.out


def script(words: list[str]) -> None:
    """A script's file, and that it or those beside it declare the options."""
    path = REPO / words[0]
    path = path if path.is_file() else REPO / "examples/study" / words[0]
    assert path.is_file(), words[0]
    if path.name == "study.py":
        return study(words)
    beside = [each.read_text() for each in path.parent.iterdir() if each.suffix in (".py", ".sh")]
    for word in words:
        option = word.strip("[").split("=")[0]
        if option.startswith("--"):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", "\n".join(beside)), option


def python(words: list[str], whole: bool) -> None:
    if words[:2] == ["-m", "fairseq_speedup"]:
        our_command(words[2:], whole)
    elif words[:2] == ["-m", "pytest"]:
        assert (REPO / words[-1]).is_file(), words[-1]
    else:
        script(words)


def pip(words: list[str], whole: bool) -> None:
    """Extras of setup.py, versions of constraints.txt."""
    assert words[0] in ("check", "install")
    tree = ast.parse((REPO / "setup.py").read_text())
    calls = [each for each in ast.walk(tree) if isinstance(each, ast.keyword)]
    (extras,) = (ast.literal_eval(each.value) for each in calls if each.arg == "extras_require")
    for word in words[1:]:
        for extra in re.findall(r"^\.\[(.*)\]$", word):
            assert set(extra.split(",")) <= set(extras), word
        if "==" in word:
            assert word in (REPO / "constraints.txt").read_text().splitlines()
    if "-c" in words:
        assert (REPO / words[words.index("-c") + 1]).is_file()


def source(words: list[str], whole: bool) -> None:
    made_later = words[0].startswith(".venv/")
    assert made_later or (REPO / words[0]).exists(), words[0]


ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=")
CHECKS = {
    "python": python,
    "fairseq-generate": generate,
    "fairseq-hydra-train": hydra_train,
    "pip": pip,
    "bash": lambda words, whole: script(words),
    "source": source,
    "cd": source,
}


def fault(command: str, whole: bool, capsys) -> str:
    """Why a command cannot be, empty where it can.

    Args:
        whole: nothing that the command needs may be missing
    """
    program, *words = words_of(command)
    while ASSIGNMENT.match(program) and words:  # of the environment
        program, *words = words
    try:
        if program in COMMANDS:
            our_command([program, *words], whole)
        elif program in CHECKS:
            CHECKS[program](words, whole)
        else:
            return f"{command}: how to try {program} is not known here; see UNTRIED"
    except (Exception, SystemExit) as error:
        return f"{command}: {type(error).__name__} {error}\n{capsys.readouterr().err}"
    return ""


# -- commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted({page for page, _ in printed()}))
def test_every_command_printed_can_be_typed(page, capsys):
    commands = {command for on, command in printed() if on == page} - set(UNTRIED)
    faults = [fault(command, True, capsys) for command in sorted(commands)]
    assert not any(faults), "\n".join(filter(None, faults))


@pytest.mark.parametrize("page", sorted({page for page, _ in mentioned()}))
def test_every_command_in_the_text_can_be_typed(page, capsys):
    commands = [command for on, command in mentioned() if on == page]
    faults = [fault(command, False, capsys) for command in commands]
    assert not any(faults), "\n".join(filter(None, faults))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("python -m fairseq_speedup transcribe --path m.pt --windows 30 a.wav", "--windows"),
        ("python -m fairseq_speedup transcribe a.wav", "required: --path"),
        ("python -m fairseq_speedup profile --arch base downsample=wavelet", "wavelet"),
        ("python -m fairseq_speedup profile --arch base keep_layer=8", "'keep_layer'"),
        ("python -m fairseq_speedup transcripts a.wav", "'transcripts'"),
        ("fairseq-generate ... --inference fp32 --windows 30", "--windows"),
        ("fairseq-generate --task speedup_finetuning", "data"),
        ("fairseq-generate ... --model-overrides \"{'exit': 0.1}\"", "'exit'"),
        ("fairseq-generate ... --user-dir $PWD/examples/extending", "extending"),
        ("fairseq-hydra-train ... model.keep_layer=8", "Could not override 'model.keep_layer'"),
        ("fairseq-hydra-train ... model.head=mpl", "mpl"),
        ("fairseq-hydra-train ... reduction=conv5", "reduction/conv5"),
        ("fairseq-hydra-train ... +criterion.teacher_path=full.pt", "'teacher_path'"),
        ("fairseq-hydra-train ... common.user_dir=$PWD/examples/extending", "extending"),
        (
            "python examples/study/study.py --config-dir examples/study --config-name open_corpus "
            "row=conv5",
            "conv5",
        ),
        ("python examples/quickstart/word_times.py a.ctm --frame-s 20", "--frame-s"),
        ("bash examples/quickstart/walk.sh", "walk.sh"),
        ("bash examples/open_corpus/make.sh FOLDER --minutes 12", "--minutes"),
        ("pip install -c constraints.txt '.[all]'", ".[all]"),
        ("pip install torch==1.0", "torch==1.0"),
        ("wget http://localhost/wav2vec_small.pt", "wget is not known"),
    ],
)
def test_a_command_that_cannot_be_is_found(command, said, capsys):
    assert said in fault(command, True, capsys)


def test_what_is_not_tried_is_still_printed():
    assert set(UNTRIED) <= {command for _, command in printed()}


def test_every_command_there_is_is_printed():
    """Each of ``python -m fairseq_speedup`` stands in a block of the manual."""
    found = {words_of(each)[3] for _, each in printed() if " -m fairseq_speedup " in each}
    assert set(COMMANDS) <= found | {"--user-dir"}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_language_that_is_read_here(page):
    opened = re.findall(r"^ *(?:```|~~~)(.*)$", text_of(page), re.M)[::2]
    assert set(opened) <= {"bash", "python", "bibtex", "text"}


# -- options ---------------------------------------------------------------------------------------


@cache
def known_options() -> set[str]:
    """Options of our commands, of fairseq-generate with our task, and of the examples' scripts."""
    (subparsers,) = build_parser()._subparsers._group_actions
    found = {each for sub in subparsers.choices.values() for each in sub._option_string_actions}
    found |= set(generation_parser(["DATA", *IN_PLACE_OF_DOTS["fairseq-generate"]])[0])
    for path in REPO.glob("examples/*/*.py"):
        found |= set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', path.read_text()))
    return found | set(OTHERS_OPTIONS)


@pytest.mark.parametrize("page", PAGES)
def test_every_option_in_the_text_is_one(page):
    named = {each for span in spans(page) for each in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
    assert named <= known_options()


@pytest.mark.parametrize("page", PAGES)
def test_every_option_of_a_config_in_the_text_is_one(page):
    for span in spans(page):
        for word in span.replace("'", "").split():
            if found := GROUP_OPTION.fullmatch(word):
                check_group_option(*found.groups())


@pytest.mark.parametrize(
    "option",
    [
        ("model", "keep_layer", "8"),
        ("model", "keep_layers", None, "is one"),
        ("model", "downsample", "wavelet"),
        ("model", "frame_pool", "two"),
        ("criterion", "_name", "ctc_exit"),
        ("criterion", "teacher", None),
        ("dataset", "valid", None),
        ("dataset", "valid_subset", "valid", "is one"),
    ],
)
def test_an_option_of_a_config_that_is_none_is_found(option):
    if option[-1] == "is one":
        check_group_option(*option[:3])
    else:
        with pytest.raises((Exception, pytest.fail.Exception)):
            check_group_option(*option)


def check_group_option(group: str, name: str, value: str | None) -> None:
    """Raises for an option that no config of the group has, or a value that it does not take."""
    given = [] if value in (None, "...") else [f"{name}={value}"]
    if name in ("pt", "onnx", "xml", "bin"):  # a file
        return
    if name == "_name":
        assert not given or value in OURS[group], value
    elif group == "model" and name in SpeedupCtcConfig.__dataclass_fields__:
        check_model_options(OmegaConf.from_dotlist(given))
    elif group in REGISTRIES:
        assert any(name in REGISTRIES[group][each].__dataclass_fields__ for each in OURS[group])
    else:
        known = OmegaConf.structured(FairseqConfig)[group]
        assert name in known, f"{group}.{name}"
        OmegaConf.merge(known, OmegaConf.from_dotlist(given))


# -- names of files and of Python ------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@cache
def anchors(page: Path) -> set[str]:
    return {slug(each) for each in re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)}


def links(page: str) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S)
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "code", text))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in links(page):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (REPO / page).parent / file if file else REPO / page
        assert target.exists(), link
        assert target.resolve().is_relative_to(REPO)
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_the_tree_that_is_named_exists(page):
    text = re.sub(r"\]\([^)]*\)", "]", text_of(page))
    folders = "config|docs|examples|tests|fairseq_speedup"
    named = set(re.findall(rf"(?<![\w/.])(?:{folders})/[\w./-]*\w", text))
    assert {name for name in named if not (REPO / name).exists()} <= NOT_IN_THE_TREE


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_python_can_be_imported(page):
    for code in blocks(page, "python"):
        for node in ast.parse(code).body:
            if isinstance(node, ast.ImportFrom):
                assert all(
                    hasattr(importlib.import_module(node.module), each.name) for each in node.names
                )
    for span in spans(page):
        if re.fullmatch(r"fairseq_speedup(\.\w+)+", span):
            module, name = span.rsplit(".", 1)
            assert hasattr(importlib.import_module(module), name), span


# -- the front page and the manual -----------------------------------------------------------------


def sections(page: str) -> dict[str, str]:
    """Headings of second order, in order, with what stands below them."""
    parts = re.split(r"^## (.*)$", text_of(page), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_front_page_is_short_and_in_the_order_of_the_command_line():
    assert len(text_of("README.md").splitlines()) <= FRONT_PAGE_LINES
    found = sections("README.md")
    assert [heading for heading in found if heading in TASKS] == list(TASKS)
    for task, lines in TASKS.items():
        named = [re.search(rf"(?<![\w-]){name}\b", found[task]) for name in lines]
        assert all(named), (task, list(lines))


def test_the_manual_has_a_page_for_each_task_and_the_front_pages_lead_to_all():
    assert {"docs/optimize.md", "docs/troubleshooting.md"} < set(MANUAL)
    index = {f"docs/{link}" for link in links("docs/README.md")}
    assert set(MANUAL) <= index
    assert "docs/README.md" in links("README.md")


def test_the_manual_leads_to_what_is_checked_of_public_checkpoints():
    assert "../tests/FAMILIES.md" in links("docs/checkpoints-and-conversion.md")
