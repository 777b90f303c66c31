"""Runs the checks of every family and era, and writes what they found as a table.

python tests/families_table.py
"""

import collections
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
TABLE = FOLDER / "FAMILIES.md"
TESTS = ("test_families.py", "test_finetuned_eras.py")
LOADS = {  # the tests that tell, by the start of their names
    "test_families.py": "test_every_family_is_reduced_trained_and_safe_in_a_batch",
    "test_finetuned_eras.py": "test_it_is_a_starting_point",
}
HEADER = """\
# Public checkpoints

Written by `python tests/families_table.py`, which runs `tests/test_families.py` and
`tests/test_finetuned_eras.py`. Each row is a small model with random weights in the exact form of
the public files: names of weights, era of the config. *Loads*: read, with each reduction of the
tests trained two steps, and decoded. *Parity*: the largest difference from Hugging Face's
implementation of the same weights in single precision, of all hidden states, alone and in a padded
batch (fine-tuned models: of the logits). *Safe*: what `python -m fairseq_speedup inspect` says of
the file.

| family | form | config | loads | parity | safe |
| --- | --- | --- | --- | ---: | --- |
"""


class Collector:
    """A pytest plugin: outcomes and properties of the tests, by form."""

    def __init__(self):
        self.forms = collections.defaultdict(list)

    def pytest_runtest_logreport(self, report):
        found = re.fullmatch(r"(.*/)?(\w+\.py)::(\w+)\[(.*)\]", report.nodeid)
        if found and (report.when != "setup" or report.failed):
            _, file, test, parameters = found.groups()
            # fixtures add their properties last
            properties = report.user_properties if report.when == "teardown" else []
            self.forms[file, parameters].append((test, report.passed, properties))


def rows(collected: dict, forms: dict[str, list[str]]) -> list[str]:
    """
    Args:
        collected: of a :class:`Collector`
        forms: names of the forms of each file of tests
    """
    lines = []
    for file, names in forms.items():
        for name in names:
            checks = [
                check
                for (of, parameters), all_checks in collected.items()
                # a test of options too has them after the form
                if of == file and (parameters == name or parameters.startswith(f"{name}-"))
                for check in all_checks
            ]
            lines.append(_row(name, checks, LOADS[file]))
    return lines


def _row(name: str, checks: list, loads: str) -> str:
    properties = collections.defaultdict(list)
    for _, _, of_test in checks:
        for key, value in of_test:
            properties[key].append(value)
    loading = [passed for test, passed, _ in checks if test.startswith(loads)]
    largest = max(properties["difference"], default=float("nan"))
    difference = f"{largest:.0e}" if largest else "0"
    cells = [
        *(properties["family"] or ["unknown"]),
        name,
        *(properties["era"] or ["unknown"]),
        "yes" if loading and all(loading) else "no",
        difference if all(passed for _, passed, _ in checks) else f"{difference}, fails",
        "yes" if properties["safe"] == [True] else "no",
    ]
    return f"| {' | '.join(cells)} |\n"


def main() -> int:
    sys.path.insert(0, str(FOLDER))
    from public_checkpoints import FINETUNED, FORMS

    collector = Collector()
    status = pytest.main(
        ["-p", "no:randomly", *(str(FOLDER / name) for name in TESTS)], [collector]
    )
    forms = dict(zip(TESTS, (list(FORMS), list(FINETUNED)), strict=True))
    TABLE.write_text(HEADER + "".join(rows(collector.forms, forms)), encoding="utf-8")
    print(f"wrote {TABLE}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
