"""The README shows today's truth: its sample is the shape of what the command prints now."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAMPLE = re.compile(r"<!-- sample: migrate (?P<arguments>.*?) -->\n```\n(?P<output>.*?)```\n<!-- end -->", re.DOTALL)


def shape(text: str) -> list[str]:
    """Words, with every number, every run of blanks or rules, and whichever device is the slowest made alike."""
    text = re.sub(r"(?<=devices is )\S+:", "it:", text)
    lines = (re.sub(r"[─ ]+", " ", re.sub(r"[\d,]+(\.\d+)?", "0", line)).strip() for line in text.splitlines())
    return [line for line in lines if line]


def without_rounds(lines: list[str]) -> list[str]:
    """How many rounds it takes depends on the machine that it runs on."""
    return [line for line in lines if not re.fullmatch(r"0 0 0 0 MiB 0 0 MiB/s 0", line)]


def test_the_readme_shows_what_a_rehearsal_prints_today() -> None:
    sample = SAMPLE.search((ROOT / "README.md").read_text())
    assert sample is not None, "the README has no sample of a rehearsal"
    run = subprocess.run(
        [sys.executable, "-m", "migrate", *sample["arguments"].split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    # Where a line is wrapped depends on how long its numbers are.
    assert " ".join(without_rounds(shape(run.stdout))) == " ".join(without_rounds(shape(sample["output"])))


def test_the_readme_names_the_two_commands_on_its_first_screen() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:24])
    assert "make rehearse" in first_screen
    assert "make test" in first_screen


def test_every_file_that_the_documents_link_to_exists() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
