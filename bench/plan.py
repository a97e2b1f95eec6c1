"""``python -m bench.plan``: what three clips of the embedded model tell about the next one, and what that then takes.

The engine and the forecast are those of the server; the first clip of each case is the first of a new engine. Exits
with 1 if a prediction is off by more than 30 %, or a number of passes is not exact.
"""

import logging
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.passes import count_calls
from ltx2.engine import CancelFlag, ModelFacts
from ltx2.model.local import LocalEngine
from ltx2.model.runner import Runner
from ltx2.plan import make_plan
from ltx2.request import GenerationRequest, Pipeline
from ltx2.settings import Settings
from ltx2.studio.forecast import Forecast

OFF: Final = 0.3
"""How far a prediction may be off."""
Shape = tuple[int, int, int]
CASES: Final[tuple[tuple[str, tuple[Shape, Shape, Shape], Shape, Pipeline], ...]] = (
    ("the same size", ((288, 512, 49),) * 3, (288, 512, 49), "auto"),
    ("the same size", ((512, 512, 97),) * 3, (512, 512, 97), "auto"),
    ("between three", ((512, 512, 97), (192, 192, 25), (288, 512, 73)), (288, 512, 49), "auto"),
    ("beyond three", ((192, 192, 25), (288, 288, 49), (288, 512, 49)), (512, 512, 73), "auto"),
    (
        "two stages after one",
        ((288, 512, 49), (192, 192, 25), (512, 512, 49)),
        (384, 512, 49),
        "two_stage",
    ),
)
"""What was made before, and what comes then."""


def main() -> int:
    """Make the clips of every case and print what was predicted of the last one."""
    logging.disable(logging.WARNING)
    is_met = True
    print(f"{'':44}  {'passes':>13}  {'predicted':>9}  {'took':>7}  {'off':>5}")
    for name, before, shape, pipeline in CASES:
        with tempfile.TemporaryDirectory() as folder:
            passes, predicted, calls, took = measured(
                Settings(data_dir=Path(folder), model="tiny"), before, shape, pipeline
            )
        off = abs(predicted / took - 1)
        is_met = is_met and off <= OFF and calls == passes
        what = f"{name}: {'x'.join(map(str, shape))}"
        print(f"{what:44}  {passes:>4} for {calls:>4}  {predicted:7.2f} s  {took:5.2f} s  {100 * off:3.0f} %")
    return 0 if is_met else 1


def measured(
    settings: Settings, before: tuple[Shape, ...], shape: Shape, pipeline: Pipeline
) -> tuple[int, float, int, float]:
    """Passes and seconds of a clip as they are planned after those before, and as they are."""
    engine, forecast = LocalEngine(settings), Forecast(settings)
    engine.load()
    model, runner = engine.status().model, engine._runner  # noqa: SLF001 - to count the calls of its transformer
    assert isinstance(model, ModelFacts)
    assert isinstance(runner, Runner)
    for number, each in enumerate(before):
        request = request_of(each, f"A lighthouse in the fog, {number}", "auto")
        clip = engine.generate(request, {}, lambda _: None, CancelFlag())
        forecast.learn(request, clip)
    request = request_of(shape, "Waves break on the rocks", pipeline)
    plan = make_plan(request, model.recipe, can_refine=model.can_refine)
    predicted = sum(forecast.predict(model, request, plan, is_loaded=True).values())
    calls = count_calls(runner.components.transformer)
    took = engine.generate(request, {}, lambda _: None, CancelFlag()).total_seconds
    return plan.passes, predicted, len(calls), took


def request_of(shape: Shape, prompt: str, pipeline: Pipeline) -> GenerationRequest:
    """A request for a clip of this width, height and length."""
    width, height, num_frames = shape
    return GenerationRequest(
        prompt=prompt, width=width, height=height, num_frames=num_frames, seed=1, pipeline=pipeline
    )


if __name__ == "__main__":
    sys.exit(main())
