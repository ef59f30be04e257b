"""explain and check of diffusion Transformers: what is asked, what comes out, and refusals."""

import json
from io import StringIO

import pytest
from rich.console import Console

from ridgeline.analysis import check as timing
from ridgeline.analysis.check import check
from ridgeline.analysis.check_denoising import check_denoising
from ridgeline.analysis.denoising import explain_denoising, predict_denoising, trace_denoising
from ridgeline.analysis.explain import explain
from ridgeline.cli import main
from ridgeline.errors import InputError
from ridgeline.hardware import load_device
from ridgeline.loading import Loaded
from ridgeline.models import declare, load_config
from ridgeline.models.denoising import Grid
from ridgeline.ops.cpu import Cpu
from ridgeline.report.denoising import show_denoising
from ridgeline.report.images import check_denoising_command
from ridgeline.report.plain import to_json
from ridgeline.weights.generation import GenerationDefaults
from ridgeline.weights.pack import random_packed
from tests.analysis.test_check import MACHINE
from tests.ops.diffusion_models import CONFIGS, config_of

H100 = load_device("h100-sxm")


def found(model="dit-xl-2", **options):
    return explain_denoising(model, H100, **options)


# -- explain -------------------------------------------------------------------------------------------


def test_dit_xl_2_takes_the_published_multiply_adds():
    assert f"{found(image=256).image.multiply_adds / 1e9:.1f}" == "118.6"
    assert f"{found(image=512).image.multiply_adds / 1e9:.1f}" == "524.5"  # 524.6 with the paper's norms


def test_guidance_doubles_the_batch_and_so_the_work():
    guided, plain = found(batch=4), found(batch=4, guidance=False)
    assert guided.workload.sequences == 8
    assert guided.phases[0].tokens == 2 * plain.phases[0].tokens == 8 * 256
    assert guided.phases[0].flops.matrix == 2 * plain.phases[0].flops.matrix
    assert guided.image.multiply_adds == plain.image.multiply_adds
    assert any("with its condition and without" in said for said in guided.assumptions)
    assert not any("with its condition and without" in said for said in plain.assumptions)


def test_an_image_takes_as_many_steps_as_it_is_told():
    ten, fifty = found(steps=10, batch=3), found(steps=50, batch=3)
    assert fifty.image.seconds == pytest.approx(5 * ten.image.seconds)
    assert ten.image.seconds == 10 * ten.phases[0].seconds
    assert ten.image.images_per_second == pytest.approx(3 / ten.image.seconds)


def test_the_defaults_are_the_models_own():
    dit, sd3, latte = (found(name).workload for name in ("dit-xl-2", "sd3-medium", "latte-1"))
    assert (dit.height, dit.width, dit.frames, dit.text, dit.steps) == (256, 256, 1, 0, 250)
    assert (sd3.height, sd3.text, sd3.steps) == (1024, 333, 28)
    assert (latte.height, latte.frames, latte.text, latte.steps) == (512, 16, 120, 50)


def test_an_image_may_be_wider_than_high():
    wide = found("sd3-medium", image="1344x768").workload
    assert (wide.width, wide.height) == (1344, 768)


def test_the_context_is_the_most_keys_that_a_row_sees():
    assert found().phases[0].context == 256
    assert found("sd3-medium").phases[0].context == 64 * 64 + 333
    assert found("latte-1").phases[0].context == 32 * 32  # of a frame; a track has 16


def test_there_is_no_cache():
    assert found().memory.cache == 0
    assert "tokens_that_fit" in json.loads(to_json(found()))["memory"]


def test_naive_attention_moves_the_scores_and_quantised_weights_fewer_bytes():
    assert found(attention="naive").phases[0].bytes > found().phases[0].bytes
    assert found(weights="int8").memory.weights < 0.6 * found().memory.weights


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("dit-xl-2", {"image": 250}, "image must be a multiple of 16 pixels"),
        ("dit-xl-2", {"image": "big"}, "pixels a side, like 512, or WIDTHxHEIGHT"),
        ("dit-xl-2", {"image": 0}, "image must be a multiple of 16"),
        ("dit-xl-2", {"frames": 4}, "makes images, not videos"),
        ("dit-xl-2", {"text": 4}, "takes a class and no text"),
        ("dit-xl-2", {"steps": 0}, "steps must be 1 to"),
        ("dit-xl-2", {"batch": 0}, "batch must be 1 to"),
        ("dit-xl-2", {"attention": "flash"}, "attention must be fused or naive"),
        ("sd3-medium", {"text": 0}, "text must be 1 to"),
        ("sd3-medium", {"image": 4096}, "3072 x 3072 pixels at most"),
        ("latte-1", {"frames": 0}, "frames must be a whole number from 1"),
        ("gpt2", {}, "no diffusion Transformer"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(model, options, message):
    with pytest.raises(InputError, match=message) as raised:
        found(model, **options)
    assert "\n" not in str(raised.value)


def test_a_longer_batch_is_never_faster_and_weights_are_read_once():
    model = declare(load_config("dit-xl-2"))
    times = [predict_denoising(model, H100, Grid(16, 16), n).seconds for n in (1, 2, 16)]
    assert times[0] < times[1] < times[2] < 16 * times[0]


# -- refusals of every other analysis --------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "dit-xl-2", "--prompt", "64"),
        ("explain", "dit-xl-2", "--output", "64"),
        ("explain", "dit-xl-2", "--cache", "int8"),
        ("explain", "dit-xl-2", "--pairs", "square"),
        ("explain", "gpt2", "--image", "256"),
        ("explain", "gpt2", "--no-guidance"),
        ("explain", "bert-base", "--steps", "3"),
        ("simulate", "dit-xl-2", "--requests", "poisson:1"),
        ("capacity", "dit-xl-2"),
        ("compare", "dit-xl-2"),
        ("advise", "dit-xl-2"),
        ("decoding", "dit-xl-2"),
        ("report", "dit-xl-2", "--prompt", "64"),
        ("report", "gpt2", "--image", "64"),
        ("training", "dit-xl-2", "--length", "64"),
        ("breakdown", "dit-xl-2", "--prompt", "64"),
        ("parallel", "dit-xl-2", "--tensor", "2"),
        ("bench", "dit-s-2", "--weights", "random"),
        ("check", "dit-s-2", "--prompt", "64"),
        ("check", "gpt2", "--image", "64"),
        ("generate", "dit-s-2", "a", "--weights", "random"),
        ("serve", "dit-s-2", "--weights", "random"),
    ],
)
def test_the_wrong_question_is_refused_by_every_command(arguments, capsys, monkeypatch):
    on = () if arguments[0] in ("bench", "check", "generate", "serve") else ("--on", "h100-sxm")
    monkeypatch.setattr("sys.argv", ["ridgeline", *arguments, *on])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2
    assert len(said.splitlines()) == 1
    assert "diffusion Transformer" in said or "denoises images" in said


@pytest.mark.parametrize("run", [explain])
def test_functions_refuse_it_too(run):
    with pytest.raises(InputError, match="diffusion Transformer"):
        run("dit-xl-2", H100)


# -- check ---------------------------------------------------------------------------------------------


@pytest.fixture
def _in_no_time(monkeypatch):
    for name, value in (("ROUND_SECONDS", 0.0), ("ROUNDS", 2), ("LEAST_STEPS", 1), ("WARM_UP", 1)):
        monkeypatch.setattr(timing, name, value)


def loaded(name):
    config = config_of(name)
    return Loaded(config, random_packed(config, "fp32"), Cpu("fp32"), None, None, GenerationDefaults(), None)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("_in_no_time")
def test_check_runs_the_predicted_step_operator_by_operator(name):
    model = loaded(name)
    (phase,) = check_denoising(model, on=MACHINE, image="96x64", batch=2).phases
    grid = Grid(4, 6, 3 if model.config.frames > 1 else 1)
    text = model.config.text_tokens or None
    trace = trace_denoising(model.model, grid, 2, text, Cpu.lowering)
    assert (phase.name, phase.rows) == ("denoise", 2 * grid.tokens)
    assert [o.name for o in phase.operators] == [op.name for op in trace.ops]
    assert phase.measured > 0
    assert phase.predicted == pytest.approx(predict_denoising(model.model, MACHINE, grid, 2, text).seconds)


def test_check_refuses_a_datasheet_and_the_wrong_kind_of_model():
    with pytest.raises(InputError, match="datasheet"):
        check_denoising(loaded("dit"), on="h100-sxm")
    with pytest.raises(InputError, match="diffusion Transformer"):
        check(loaded("dit"), on=MACHINE)
    with pytest.raises(InputError, match="batch must be at least 1"):
        check_denoising(loaded("dit"), on=MACHINE, batch=0)


# -- what is shown -------------------------------------------------------------------------------------


def test_the_terminal_names_steps_images_and_multiply_adds():
    console = Console(file=StringIO(), width=200)
    show_denoising(console, found(image=256, steps=250, batch=8))
    said = " ".join(console.file.getvalue().split())
    for part in (
        "675M parameters",
        "8 x 256 x 256 pixels, guided",
        "250 steps",
        "119B multiply-adds",
        "modulation",
    ):
        assert part in said


def test_the_command_that_checks_an_explanation_asks_for_the_same_step():
    machine = explain_denoising("latte-1", MACHINE, image="96x64", text=9, weights="fp32", batch=2)
    assert check_denoising_command(machine) == (
        "ridgeline check latte-1 --weights random:fp32 --image 96x64 --frames 16 --text 9 --batch 4"
    )
    assert check_denoising_command(found()) is None
