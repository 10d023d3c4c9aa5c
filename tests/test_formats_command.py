"""`altgrad formats`: facts, codes and figures against other libraries and the page, in words a script can read too."""

import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gfloat
import ml_dtypes
import numpy as np
import pytest
import scipy.stats
import torch
from gfloat.formats import format_info_bfloat16, format_info_binary16, format_info_ocp_e4m3, format_info_ocp_e5m2
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sweeps import ROOT, altgrad

from altgrad.quantization import kernels
from altgrad.quantization.formats import BF16, E4M3, E5M2, FORMAT_REGISTRY, FP8_FORMATS, FP16, FP32, FP8Format
from orchestrator.cli import facts as verbs
from orchestrator.facts.markdown import number
from orchestrator.formats.facts import codes, facts
from orchestrator.formats.figures import ELEMENTS, fidelity, tensors
from orchestrator.formats.tables import exactly, overview

by_name = pytest.mark.parametrize("format", FP8_FORMATS, ids=lambda format: format.name)
by_every_name = pytest.mark.parametrize("format", FORMAT_REGISTRY.values(), ids=lambda format: format.name)

#: How the rows of the page's tables begin.
ROWS = tuple(f"| {name} |" for name in FORMAT_REGISTRY)


@pytest.fixture(scope="module")
def figures() -> dict[str, dict[str, Any]]:
    data = tensors()
    return {name: fidelity(format, data) for name, format in FORMAT_REGISTRY.items()}


class TestFacts:
    @pytest.mark.parametrize(
        ("format", "theirs"),
        [
            (E4M3, ml_dtypes.finfo(ml_dtypes.float8_e4m3fn)),
            (E5M2, ml_dtypes.finfo(ml_dtypes.float8_e5m2)),
            (BF16, ml_dtypes.finfo(ml_dtypes.bfloat16)),
            (FP16, np.finfo(np.float16)),
            (FP32, np.finfo(np.float32)),
        ],
        ids=["E4M3", "E5M2", "bf16", "fp16", "fp32"],
    )
    def test_are_those_that_numpy_and_ml_dtypes_know(self, format: FP8Format, theirs: Any) -> None:
        ours = facts(format)
        assert ours["largest"] == float(theirs.max)
        assert ours["smallest"] == float(theirs.smallest_subnormal)
        assert ours["spacing_near"]["1"] == float(theirs.eps)
        assert (ours["exponent_bits"], ours["mantissa_bits"], ours["bits"]) == (theirs.iexp, theirs.nmant, theirs.bits)

    @by_every_name
    def test_spacings_are_those_of_the_kernels(self, format: FP8Format) -> None:
        near = {"0.02": 0.02, "1": min(1.0, format.max_representable_value)}
        n = kernels.format_numbers([format]).view()
        expected = {name: kernels.rung_spacing(torch.tensor(value), n).item() for name, value in near.items()}
        assert facts(format)["spacing_near"] == expected


class TestCodes:
    @pytest.mark.parametrize(
        ("format", "theirs"),
        [
            (E4M3, format_info_ocp_e4m3),
            (E5M2, format_info_ocp_e5m2),
            (FP16, format_info_binary16),
            (BF16, format_info_bfloat16),
        ],
        ids=["E4M3", "E5M2", "fp16", "bf16"],
    )
    def test_are_those_of_gfloat(self, format: FP8Format, theirs: gfloat.FormatInfo) -> None:
        ours = list(codes(format))
        named = {"inf": math.inf, "-inf": -math.inf, "NaN": math.nan}
        values = [code["value"] if code["value"] is not None else named[code["special"]] for code in ours]
        expected = gfloat.decode_ndarray(theirs, np.arange(1 << format.bits))
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(
            [code["special"] == "-0" for code in ours], np.signbit(expected) & (expected == 0)
        )
        assert [int(code["code"], 16) for code in ours] == list(range(1 << format.bits))

    @by_name
    def test_split_into_sign_exponent_and_mantissa(self, format: FP8Format) -> None:
        for code in codes(format):
            sign, exponent, mantissa = code["bits"].split("|")
            assert (len(sign), len(exponent), len(mantissa)) == (1, format.exponent_bits, format.mantissa_bits)
            assert int(sign + exponent + mantissa, 2) == int(code["code"], 16)

    @by_name
    def test_spacing_is_the_distance_to_the_next_value_outward(self, format: FP8Format) -> None:
        positive = list(codes(format))[: format.max_code + 1]
        for low, high in itertools.pairwise(positive):
            assert low["spacing"] == high["value"] - low["value"]
        assert {code["spacing"] for code in codes(format) if code["value"] is None} <= {None}

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.0, "0"),
            (-0.0, "-0"),
            (448.0, "448"),
            (2.0**-9, "0.001953125"),
            (3 * 2.0**-31, "3*2^-31"),
            (-(2.0**64), "-2^64"),
        ],
    )
    def test_values_read_well(self, value: float, text: str) -> None:
        assert exactly(value) == text

    @given(value=st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([5e-324, 1.7e308])))
    def test_values_are_shown_without_rounding(self, value: float) -> None:
        significand, _, exponent = exactly(value).partition("2^")
        shown = float(significand) if not exponent else math.ldexp(_factor(significand), int(exponent))
        assert shown == value


def _factor(text: str) -> int:
    """The integer before ``2^``, where one is left out."""
    return int(text.removesuffix("*")) if text.strip("-") else int(text + "1")


class TestFigures:
    #: dB, measured before this code existed.
    @pytest.mark.parametrize(
        ("format", "gaussian", "student_t3"),
        [
            ("E0M7", 38.9, 13.6),
            ("E1M6", 38.9, 13.6),
            ("E2M5", 42.4, 19.5),
            ("E3M4", 37.6, 35.5),
            ("E4M3", 31.5, 31.6),
            ("E5M2", 25.6, 25.6),
            ("E6M1", 19.7, 19.7),
            ("E7M0", 14.2, 14.2),
        ],
    )
    def test_agree_with_those_measured_before(
        self, format: str, gaussian: float, student_t3: float, figures: dict[str, dict[str, Any]]
    ) -> None:
        noise = figures[format]["sqnr_db"]
        assert noise["gaussian"] == pytest.approx(gaussian, abs=0.1)
        assert noise["student_t3"] == pytest.approx(student_t3, abs=0.1)

    @pytest.mark.parametrize(("name", "amax_over_rms"), [("gaussian", 5.01), ("laplace", 10.18), ("student_t3", 91.8)])
    def test_of_a_level_grid_are_those_of_its_formula(
        self, name: str, amax_over_rms: float, figures: dict[str, dict[str, Any]]
    ) -> None:
        expected = 10 * math.log10(12 * 127**2) - 20 * math.log10(amax_over_rms)
        assert figures["E0M7"]["sqnr_db"][name] == pytest.approx(expected, abs=0.02)

    @by_name
    def test_of_a_heavy_tail_fall_with_the_size_of_the_tensor(self, format: FP8Format) -> None:
        small, large = (fidelity(format, tensors(count))["sqnr_db"]["student_t3"] for count in (50_000, 400_000))
        level = format.exponent_bits < 2
        # The largest grows like the cube root of the size: 6 dB for eight times as many.
        assert small - large == pytest.approx(6.02, abs=0.3) if level else -0.2 < small - large < 6.3

    @pytest.mark.parametrize(
        ("name", "theirs"),
        [
            ("gaussian", scipy.stats.norm()),
            ("laplace", scipy.stats.laplace()),
            ("student_t3", scipy.stats.t(3)),
            ("lognormal", scipy.stats.lognorm(1)),
        ],
    )
    def test_are_of_quantiles(self, name: str, theirs: Any) -> None:
        expected = theirs.ppf((np.arange(1000) + 0.5) / 1000)
        np.testing.assert_allclose(tensors(1000)[name].numpy(), expected, rtol=1e-6)
        assert tensors()[name].numel() == ELEMENTS

    def test_count_the_values_of_a_gaussian_tensor(self, figures: dict[str, dict[str, Any]]) -> None:
        x = tensors()["gaussian"].numpy()
        cast = (x / (np.abs(x).max() / np.float32(57344))).astype(ml_dtypes.float8_e5m2)
        assert figures["E5M2"]["values_used"] == len(np.unique(cast.astype(np.float32)))
        for name, format in FORMAT_REGISTRY.items():
            assert 0 < figures[name]["values_used"] <= format.finite_values
        assert figures["E0M7"] == figures["E1M6"]

    def test_float32_loses_nothing(self, figures: dict[str, dict[str, Any]]) -> None:
        assert set(figures["fp32"]["sqnr_db"].values()) == {None}


class TestCommand:
    @pytest.fixture(autouse=True)
    def terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verbs, "out", Console(width=100))

    def test_prints_every_format_as_the_page_shows_it(
        self, figures: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        Console(width=80).print(
            overview([facts(FORMAT_REGISTRY[name]) | figure for name, figure in figures.items()], ELEMENTS)
        )
        printed = capsys.readouterr().out
        page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
        shown = [line.split() for line in printed.splitlines() if line.split(" ")[0] in FORMAT_REGISTRY]
        kept = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(ROWS)]
        assert [row[0] for row in shown] == 2 * list(FORMAT_REGISTRY)
        assert shown == kept
        assert max(map(len, printed.splitlines())) <= 80

    def test_prints_strict_json(self, figures: dict[str, dict[str, Any]], tmp_path: Path) -> None:
        answer = altgrad("formats", "--json", cwd=tmp_path)
        assert (answer.returncode, answer.stderr) == (0, "")
        shown = json.loads(answer.stdout, parse_constant=pytest.fail)
        assert shown["elements"] == ELEMENTS
        assert [each["name"] for each in shown["formats"]] == list(FORMAT_REGISTRY)
        for each in shown["formats"]:
            figure = figures[each["name"]]
            assert each["values_used"] == figure["values_used"]
            assert each["sqnr_db"] == pytest.approx(figure["sqnr_db"])
            assert facts(FORMAT_REGISTRY[each["name"]]).items() <= each.items()

    @by_name
    @pytest.mark.parametrize("columns", [30, 80, 159])
    def test_prints_every_code_of_a_format_within_the_width(
        self, format: FP8Format, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(verbs, "out", Console(width=columns))
        assert verbs.formats(format.name) == 0
        printed = capsys.readouterr().out
        rows = re.findall(r"\b([0-9A-F]{2}) +([01|]{10}) +(\S+)(?: +((?:2\^-?)?\d+)(?!\S))?", printed)
        gaps = ["" if code["spacing"] is None else number(code["spacing"]) for code in codes(format)]
        values = [code["special"] or exactly(code["value"]) for code in codes(format)]
        names = [(code["code"], code["bits"]) for code in codes(format)]
        assert sorted(rows) == [(*name, value, gap) for name, value, gap in zip(names, values, gaps, strict=True)]
        assert max(map(len, printed.splitlines())) <= max(columns, 80)

    @by_every_name
    def test_prints_a_format_as_strict_json(self, format: FP8Format, capsys: pytest.CaptureFixture[str]) -> None:
        assert verbs.formats(format.name, as_json=True) == 0
        shown = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert shown.pop("codes") == (list(codes(format)) if format.bits == 8 else None)
        assert shown == facts(format)

    def test_says_that_the_codes_of_a_wide_format_are_too_many(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert verbs.formats("bf16") == 0
        assert "65,536 codes are not listed" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("E4M4", "did you mean 'E4M3'?"), ("e2m5", "did you mean 'E2M5'?"), ("posit", "known: E0M7, E1M6")],
    )
    def test_a_wrong_name_is_a_mistake_with_a_hint(self, name: str, hint: str, tmp_path: Path) -> None:
        refused = altgrad("formats", name, cwd=tmp_path)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"unknown format '{name}'; {hint}" in refused.stderr

    def test_one_format_needs_neither_torch_nor_numpy(self) -> None:
        program = (
            "import sys; from orchestrator.cli import facts; facts.formats('E3M4');"
            "sys.exit(' '.join({'torch', 'numpy', 'scipy', 'ray'} & set(sys.modules)) or 0)"
        )
        answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
        assert (answer.returncode, answer.stderr) == (0, "")


def test_the_plot_on_the_page_is_what_its_script_draws(tmp_path: Path) -> None:
    docs = ROOT / "docs"
    subprocess.run(
        [sys.executable, docs / "plot_formats.py", tmp_path / "formats.svg"], check=True, cwd=ROOT, capture_output=True
    )
    assert (tmp_path / "formats.svg").read_bytes() == (docs / "formats.svg").read_bytes()
