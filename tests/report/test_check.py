"""A check in every format: valid by the format's own schema, whatever names a model has."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import xmlschema
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from advisor.check.compare import compare
from advisor.check.records import (
    RULES,
    CheckReport,
    Figures,
    Finding,
    LayerChange,
    LayerFigures,
    TargetReport,
)
from advisor.report import check as render
from advisor.report.check.changes import plain
from tests.check.records import FIGURES, HERE, LAYERS, checked, snapshot

SCHEMAS = Path(__file__).parent / "schemas"
SARIF = jsonschema.Draft202012Validator(json.loads((SCHEMAS / "sarif-2.1.0.json").read_text()))
OURS = jsonschema.Draft202012Validator(json.loads((Path(render.__file__).parent / "schema.json").read_text()))
JUNIT = xmlschema.XMLSchema10(str(SCHEMAS / "junit.xsd"))
WIDER = LAYERS | {
    "features.0": LayerFigures("standard", (32, 3, 3, 3), 864, 2_000_000, 1_200_000),
    "features.9": LayerFigures("pointwise", (32, 32, 1, 1), 1024, 900_000, 5_000),
}
DEARER = Figures(trainable_parameters=2000, delta_bytes=8000, update_flops=3_900_000, peak_bytes=1_500_000)


def text(report, width=80):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    render.print_text(report, console)
    return console.file.getvalue()


def reported(now, before=None, **given):
    findings = compare(now, before, 0.05, expected=before is not None)
    return TargetReport("net", "phone", tuple(findings), now, before, **given)


@pytest.fixture
def report():
    """A target that grew, one that stayed, and a model that failed."""
    grown = reported(checked(snapshot(figures=DEARER, layers=WIDER)), snapshot(), seconds=1.25)
    failed = TargetReport("other", "default", (Finding("model-failed", "error", "it hangs"),), None, None)
    same = reported(checked(), snapshot())
    return CheckReport((grown, failed, same), "pyproject.toml", {"net": 7, "other": 12}, 0.05)


FORMATS = {
    "text": text,
    "json": render.dumps,
    "sarif": render.to_sarif,
    "junit": render.to_junit,
    "github": render.to_github,
    "markdown": render.to_markdown,
}


@pytest.mark.parametrize("form", FORMATS)
def test_each_names_the_candidate_the_layers_and_what_failed(report, form):
    content = FORMATS[form](report)
    for part in ("norm", "features.0", "features.9", "it hangs"):
        assert part in content, part
    if form != "json":
        shapes = content.replace("→", "->").replace("-&gt;", "->")
        assert "16x3x3x3 -> 32x3x3x3" in shapes
        assert "+50.0%" in content.replace("%25", "%")


def test_sarif_is_valid_and_points_at_the_configuration(report):
    document = json.loads(render.to_sarif(report))
    SARIF.validate(document)
    (run,) = document["runs"]
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == set(RULES)
    grown, failed = run["results"]
    assert grown["ruleId"] == run["tool"]["driver"]["rules"][grown["ruleIndex"]]["id"] == "cost-increased"
    place = grown["locations"][0]["physicalLocation"]
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("pyproject.toml", 7)
    names = [layer["logicalLocations"][0]["fullyQualifiedName"] for layer in grown["relatedLocations"]]
    assert names[0] == "net.features.0"
    assert failed["level"] == "error"
    assert json.loads(render.to_sarif(report)) == document  # its fingerprints are stable


def test_junit_is_valid_and_tells_failures_from_errors(report):
    document = render.to_junit(report)
    JUNIT.validate(document)
    suites = ElementTree.fromstring(document)
    assert (suites.get("tests"), suites.get("failures"), suites.get("errors")) == ("3", "1", "1")
    assert [case.get("name") for case in suites.iter("testcase")] == ["phone", "phone", "default"]
    assert suites.find(".//testcase").get("time") == "1.250"


def test_json_is_valid_and_holds_both_sides(report):
    document = json.loads(render.dumps(report))
    OURS.validate(document)
    assert document["exit_code"] == 2
    grown = document["targets"][0]
    assert grown["before"]["figures"]["peak_bytes"] == FIGURES.peak_bytes
    assert grown["now"]["figures"]["peak_bytes"] == DEARER.peak_bytes
    assert grown["findings"][0]["layers"][0]["after"]["shape"] == [32, 3, 3, 3]


def test_annotations_are_lines_that_github_reads(report):
    lines = render.to_github(report).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(
        "::error file=pyproject.toml,line=7,title=peft-advisor%3A net (phone)::norm costs"
    )
    assert "%0Afeatures.0 (standard)" in lines[0]
    assert "(+50.0%25)" in lines[0]
    warns = TargetReport("net", "default", (Finding("machine-differs", "warning", "here"),), checked(), None)
    notes = TargetReport("net", "default", (Finding("cost-decreased", "note", "less"),), checked(), None)
    commands = render.to_github(CheckReport((warns, notes), "", {})).splitlines()
    assert [line.split(" ")[0] for line in commands] == ["::warning", "::notice"]


def test_markdown_has_a_table_of_before_and_after(report):
    lines = render.to_markdown(report).splitlines()
    assert lines[0] == "### ❌ Fine-tuning costs: 1 of 3 targets could not be checked, 1 failed"
    assert lines[-1].startswith(
        "**What next?** If the new costs are meant, run `peft-advisor check --update`"
    )
    assert "| peak memory | 1.00 MB | 1.50 MB | **+50.0%** |" in lines
    assert "| `features.0` | standard | 16x3x3x3 → 32x3x3x3 | 600 kB → 1.20 MB | 1.00 → 2.00 MFLOP |" in lines
    assert any(line.startswith("<details><summary>✅ <code>net (phone)</code>: no change") for line in lines)


def test_text_fits_80_columns_and_says_the_verdict_last(report):
    lines = text(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "1 of 3 targets could not be checked, 1 failed"
    assert lines[0] == "FAIL  net (phone)"
    assert "pass  net (phone)" in lines
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b" not in text(report)


@pytest.mark.parametrize(
    ("targets", "words", "code"),
    [
        ([reported(checked(), snapshot())], "1 target passed", 0),
        ([reported(checked(), snapshot())] * 2, "2 targets passed", 0),
        ([reported(checked(fits=False, answer="Nothing fits."))], "1 of 1 target failed", 1),
        ([], "nothing to check", 0),
    ],
)
def test_the_verdict_is_one_sentence(targets, words, code):
    found = CheckReport(tuple(targets), "", {})
    assert text(found).splitlines()[-1] == words
    assert found.exit_code == code


def test_a_flip_shows_both_candidates():
    now = checked(snapshot(recommended="bias"), of_baseline=DEARER, of_baseline_layers=WIDER)
    content = render.to_markdown(CheckReport((reported(now, snapshot()),), "", {}))
    assert "Recommended: `norm` → `bias`" in content
    assert "| `norm` | before | now | change | `bias` now |" in content
    assert "| peak memory | 1.00 MB | 1.50 MB | **+50.0%** | 1.00 MB |" in content
    assert re.search(
        r"peak memory +1.00 MB +1.50 MB +\+50.0% +1.00 MB",
        text(CheckReport((reported(now, snapshot()),), "", {})),
    )


def test_a_target_that_passes_says_how_it_stands_to_the_baseline():
    larger = Figures(1000, 4000, 2_000_001, 1_000_000)
    grown = checked(snapshot(figures=larger, machine_peak_bytes={HERE: 1_150_000}))
    for one, words in (
        (reported(checked(), snapshot()), "no change"),
        (reported(checked()), "within its limits"),
        (reported(grown, snapshot()), "within what is allowed"),
    ):
        content = render.to_markdown(CheckReport((one,), "pyproject.toml", {}))
        assert f"<code>net (phone)</code>: {words}</summary>" in content
        assert "What next" not in content
    assert "| FLOPs of an update | 2.00 MFLOP | 2.00 MFLOP | **+\\<0.1%** |" in content
    assert "| with operators' workspace | 1.10 MB | 1.15 MB | **+4.5%** |" in content


def test_a_named_candidate_that_does_not_fit_is_not_called_recommended():
    one = reported(checked(fits=False, answer="norm does not fit."), snapshot())
    content = render.to_markdown(CheckReport((one,), "", {}))
    assert "Candidate: `norm`" in content
    assert "Recommended" not in content
    assert "What next" not in content  # renewing the baseline would not help


def test_a_layer_that_is_new_or_gone_says_so_once():
    layers = {name: LAYERS[name] for name in ("features.0", "other")} | {"features.9": WIDER["features.9"]}
    one = reported(checked(snapshot(figures=DEARER, layers=layers)), snapshot())
    found = CheckReport((one,), "", {})
    content = render.to_markdown(found)
    assert "| `features.9` (new) | pointwise | 32x32x1x1 | 5.00 kB | 900 kFLOP |" in content
    assert "| `head` (gone) | linear | 5x16 | 200 kB | 800 kFLOP |" in content
    assert "features.9 (pointwise, new) 32x32x1x1: 5.00 kB at the peak, 900 kFLOP" in render.to_junit(found)


def test_long_names_of_layers_are_not_folded():
    names = [f"backbone.stages.{n}.mixer.projection" for n in range(3)]
    before, after = (dict.fromkeys(names, layers["features.0"]) for layers in (LAYERS, WIDER))
    grown = reported(checked(snapshot(figures=DEARER, layers=after)), snapshot(layers=before))
    lines = text(CheckReport((grown,), "", {})).splitlines()
    start = lines.index(f"      {names[0]} (standard) 16x3x3x3 -> 32x3x3x3")
    assert lines[start + 1] == "        600 kB -> 1.20 MB at the peak, 1.00 -> 2.00 MFLOP"


def test_what_is_said_of_a_target_that_passes_is_in_junit(report):
    warned = reported(checked(warnings=("only the whole network can be trained",)), snapshot())
    suites = ElementTree.fromstring(render.to_junit(CheckReport((warned,), "", {})))
    said = suites.findtext(".//system-out")
    assert said.splitlines() == [
        "norm: 1.10 MB of 2.00 MB at the peak, 2.00 MFLOP an update, 4.00 kB to ship",
        "warning: only the whole network can be trained",
    ]
    assert suites.find(".//failure") is None


def test_sarif_tells_what_to_do_and_tells_targets_of_a_model_apart(report):
    small = TargetReport("net", "watch", report.targets[0].findings, report.targets[0].now, snapshot())
    (run,) = json.loads(render.to_sarif(CheckReport((report.targets[0], small), "", {})))["runs"]
    assert len({rule["help"]["text"] for rule in run["tool"]["driver"]["rules"]}) == len(RULES)
    prints = [result["partialFingerprints"]["primaryLocationLineHash"] for result in run["results"]]
    assert len(set(prints)) == 2
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("pyproject.toml", 1)
    assert run["invocations"][0]["exitCode"] == 1


def test_a_file_name_is_a_uri_reference_and_a_property():
    finding = Finding("cost-increased", "error", "100% more")
    one = TargetReport("a,b: c", "default", (finding,), checked(), None)
    found = CheckReport((one,), "ci files/a,b:c%.toml", {"a,b: c": 3})
    place = json.loads(render.to_sarif(found))["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "ci%20files/a%2Cb%3Ac%25.toml"
    line = render.to_github(found)
    assert line.startswith(
        "::error file=ci files/a%2Cb%3Ac%25.toml,line=3,title=peft-advisor%3A a%2Cb%3A c::100%25"
    )
    assert "file=" not in render.to_github(CheckReport((one,), "", {}))  # no file, no line of one


MARKUP = st.text(st.sampled_from("ab1.`|\\<>[]()!*_~#@&;:/ \n-=$'\"{}\u202e\x1b"), max_size=16)


@settings(max_examples=100, deadline=None)
@given(MARKUP, MARKUP, MARKUP.map(lambda text: text.replace("`", "")))
def test_markdown_shows_names_and_messages_as_they_are(model, layer, message):
    change = LayerChange(layer, None, LayerFigures("conv", (1, 2), 1, 1, 1))
    one = TargetReport(
        model, "default", (Finding("cost-increased", "error", message, (change,)),), checked(), None
    )
    found = CheckReport((one,), "", {})
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(render.to_markdown(found))
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"link_open", "image", "html_inline", "html_block", "em_open", "s_open", "fence"}
    codes = [each.content.strip() for each in inline if each.type == "code_inline"]
    assert plain(model).replace("|", "¦").strip() in codes
    assert plain(layer).replace("|", "¦").strip() in codes
    first = next(place for place, token in enumerate(tokens) if token.type == "list_item_open")
    said = next(token for token in tokens[first:] if token.type == "inline")
    words = "".join(each.content for each in said.children).replace("\u200b", "")
    assert " ".join(words.split()) == " ".join(f"❌ {plain(message)}".replace(" -> ", " → ").split())


ANY = st.text(st.characters(exclude_categories=()), max_size=12)


@settings(max_examples=60, deadline=None)
@given(ANY, ANY, ANY, ANY)
def test_any_name_gives_valid_documents(model, target, layer, message):
    change = LayerChange(layer, None, LayerFigures(layer, (1, 2), 1, 1, 1))
    finding = Finding("cost-increased", "error", message, (change,))
    one = TargetReport(model, target, (finding,), checked(answer=message), snapshot())
    found = CheckReport((one,), "ci/pyproject.toml", {model: 3})
    SARIF.validate(json.loads(render.to_sarif(found)))
    JUNIT.validate(render.to_junit(found))
    OURS.validate(json.loads(render.dumps(found)))
    annotation = render.to_github(found)
    assert len(annotation.splitlines()) == 1
    assert re.fullmatch(r"::error file=[^:,]+,line=3,title=[^:,]*::.*\n", annotation)
    rows = [line for line in render.to_markdown(found).splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} <= {5, 6}  # no name adds a column
    for form in (render.to_sarif, render.to_junit, render.to_github, render.to_markdown, text):
        form(found).encode()  # no lone surrogate
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text(found))
