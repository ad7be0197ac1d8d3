"""Streams through an engine: memory management, tested in host memory, and the numbers, if there is a GPU."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pom_export
from pom_export import StreamingSession
from pom_export.engine import device_memory, streaming
from pom_export.engine.backend import gpu_present
from pom_export.engine.manifest import sealed
from pom_export.engine.streaming import TensorRtBackend, tensorrt_backend
from pom_export.errors import EngineError, InputError, MissingDependencyError
from pom_export.parity.tolerances import MODELS
from pom_export.runtime import StreamPool
from pom_export.runtime.streaming.interface import StatefulModel
from tests import small_models
from tests.engine.host_tensorrt import HostContext, HostCuda, HostEngine, Specialization
from tests.streaming_graphs import CHANNELS, VOCABULARY, running_sum_model

IDS = np.random.default_rng(1).integers(0, VOCABULARY, (2, 40))
PROFILE = {"batch": (1, 2), "tokens": (1, 40), "past_tokens": (0, 64)}
KINDS: dict[str, dict[str, Any]] = {
    "sums": {},
    "mask": {"mask": True},
    "hybrid": {"attention": True},
    "hybrid and mask": {"attention": True, "mask": True},
}
CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export beside its engine, m.onnx and m.engine."""
    folder = tmp_path_factory.mktemp("built")
    pom_export.export(CHECKPOINT, folder / "m.onnx", stateful=True)
    pom_export.build_engine(folder / "m.onnx", folder / "m.engine", backend="tensorrt-rtx", targets=["sm80"])
    return folder


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    host = HostCuda()
    monkeypatch.setattr(device_memory, "cuda", lambda: host)
    return host


def open_session(model: Path, cuda: HostCuda, batch: int = 2, profile: Any = PROFILE) -> StreamingSession:
    engine = HostEngine(model, cuda, profile)
    return StreamingSession(
        model, batch=batch, backend=lambda interface, rows: TensorRtBackend(engine, interface, rows)
    )


def context_of(session: StreamingSession) -> HostContext:
    return session._backend._context  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_any_split_is_one_pass(kind: str, cuda: HostCuda, tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", **KINDS[kind])
    expected = StreamingSession(model, batch=2).prefill(IDS)
    session = open_session(model, cuda)
    for _ in range(2):
        outputs = [session.prefill(IDS[:, :7])]
        outputs += [session.step(IDS[:, place])[:, np.newaxis].copy() for place in range(7, 30)]
        outputs += [session.prefill(IDS[:, 30:31]), session.prefill(IDS[:, 31:])]
        np.testing.assert_array_equal(np.concatenate(outputs, 1), expected)
        assert session.lengths.tolist() == [40, 40]
        session.reset()


def test_vectors_and_other_inputs(cuda: HostCuda, tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", ids=False, positions=True, kind="block-causal")
    x = np.random.default_rng(0).integers(-2, 3, (2, 6, CHANNELS)).astype(np.float32)
    expected = StreamingSession(model, batch=2).prefill(x, positions=np.arange(6))
    session = open_session(model, cuda)
    outputs = [session.prefill(x[:, :4], positions=np.arange(4))]
    outputs += [session.step(x[:, n], positions=[n])[:, np.newaxis].copy() for n in (4, 5)]
    np.testing.assert_array_equal(np.concatenate(outputs, 1), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_forks_snapshots_and_other_executors_go_on_from_a_state(kind: str, cuda: HostCuda, tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", **KINDS[kind])
    elsewhere = StreamingSession(model, batch=2)
    expected = elsewhere.prefill(IDS)
    session = open_session(model, cuda)
    session.prefill(IDS[:, :9])
    fork, state = session.fork(), session.snapshot()
    for token in range(5):
        session.step([token, token])
    np.testing.assert_array_equal(fork.prefill(IDS[:, 9:]), expected[:, 9:])
    for other in (session, elsewhere):
        other.restore(state)
        assert other.state_bytes == state.nbytes
        np.testing.assert_array_equal(other.prefill(IDS[:, 9:]), expected[:, 9:])


def test_steps_allocate_nothing_and_everything_is_freed(cuda: HostCuda, tmp_path: Path) -> None:
    session = open_session(running_sum_model(tmp_path / "m.onnx"), cuda, batch=1)
    for token in range(3):
        session.step(token)
    allocated = cuda.allocated
    outputs = {session.step(token).ctypes.data for token in range(20)}
    assert cuda.allocated == allocated
    assert len(outputs) == 2
    del session
    gc.collect()
    assert not cuda.blocks
    assert not cuda.streams


def test_caches_are_rarely_allocated(cuda: HostCuda, tmp_path: Path) -> None:
    session = open_session(running_sum_model(tmp_path / "m.onnx", attention=True), cuda, batch=1)
    session.step(0)
    allocated = cuda.allocated
    for token in range(1, 64):
        session.step(token)
    assert cuda.allocated - allocated <= 2 * 6  # 64 tokens are 6 doublings, of two buffers


def test_kernels_are_compiled_for_shapes_that_come_again(cuda: HostCuda, tmp_path: Path) -> None:
    for growing, expected in ((False, Specialization.LAZY), (True, Specialization.NONE)):
        session = open_session(running_sum_model(tmp_path / "m.onnx", attention=growing), cuda)
        assert context_of(session).specialization is expected
    if importlib.util.find_spec("tensorrt_rtx"):
        import tensorrt_rtx

        assert hasattr(tensorrt_rtx.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
        assert hasattr(tensorrt_rtx.DynamicShapesKernelSpecializationStrategy, "NONE")


def test_an_output_of_a_step_is_read_only_and_lives_through_the_next_call(cuda: HostCuda, tmp_path: Path) -> None:
    session = open_session(running_sum_model(tmp_path / "m.onnx"), cuda, batch=1)
    first = session.step(5)
    kept = first.copy()
    session.step(6)
    np.testing.assert_array_equal(first, kept)
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_fails_leaves_the_state(kind: str, cuda: HostCuda, tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", **KINDS[kind])
    expected = StreamingSession(model, batch=2).prefill(IDS)
    session = open_session(model, cuda)
    session.prefill(IDS[:, :4])
    context_of(session).fails = True
    for call in (lambda: session.prefill(IDS[:, 9:20]), lambda: session.step(IDS[:, 9])):
        with pytest.raises(InputError, match=r"TensorRT cannot run m.onnx: .*The state is unchanged"):
            call()
    context_of(session).fails = False
    np.testing.assert_array_equal(session.prefill(IDS[:, 4:]), expected[:, 4:])


def test_what_an_engine_was_not_built_for_is_refused(cuda: HostCuda, tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", attention=True)
    with pytest.raises(InputError, match=r"past_state .* 3x1x2x8, but the engine of m.onnx takes 1x.*2x1x2x8"):
        open_session(model, cuda, batch=3)
    with pytest.raises(InputError, match=r"past_key_values.0.key of a call is 1x1x0x8.* takes 1x1x1x8 to"):
        open_session(model, cuda, batch=1, profile=PROFILE | {"past_tokens": (1, 64)})
    session = open_session(model, cuda, batch=1)
    with pytest.raises(InputError, match=r"input_ids of a call is 1x41, .* takes 1x1 to 2x40.*max_shapes"):
        session.prefill(np.zeros((1, 41), np.int64))
    assert session.length == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", ["malloc", "copy", "execute", "synchronize"])
def test_an_interrupted_call_leaves_the_state(
    moment: str, kind: str, cuda: HostCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = running_sum_model(tmp_path / "m.onnx", **KINDS[kind])
    expected = StreamingSession(model, batch=2).prefill(IDS)
    session = open_session(model, cuda)
    session.prefill(IDS[:, :4])
    place, name = (context_of(session), "execute_async_v3") if moment == "execute" else (cuda, moment)
    original = getattr(place, name)

    def interrupted(*arguments: Any) -> None:
        original(*arguments)
        raise KeyboardInterrupt

    for tokens in (IDS[:, 9:10], IDS[:, 9:30]):
        monkeypatch.setattr(place, name, interrupted)
        # A single token fits where four have been.
        if (moment, tokens.shape[1]) != ("malloc", 1) or "hybrid" in kind:
            with pytest.raises(KeyboardInterrupt):
                session.prefill(tokens)
        monkeypatch.setattr(place, name, original)
        assert session.length == 4
    np.testing.assert_array_equal(session.prefill(IDS[:, 4:]), expected[:, 4:])


def test_a_full_gpu_is_one_line(cuda: HostCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> int:
        raise EngineError("CUDA cannot allocate it")

    session = open_session(running_sum_model(tmp_path / "m.onnx"), cuda, batch=1)
    monkeypatch.setattr(cuda, "malloc", full)
    with pytest.raises(EngineError, match="CUDA cannot allocate it"):
        session.prefill(IDS[:1])
    assert session.length == 0


def test_a_nearly_full_gpu_is_filled(cuda: HostCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a cache cannot be allocated for twice its tokens, it still can for the current number."""
    model = running_sum_model(tmp_path / "m.onnx", attention=True)
    expected = StreamingSession(model, batch=1).prefill(IDS[:1])
    session = open_session(model, cuda, batch=1)
    session.prefill(IDS[:1, :20])
    largest = 40 * CHANNELS * 2
    malloc, refused = cuda.malloc, []

    def nearly_full(nbytes: int) -> int:
        if nbytes <= largest:
            return malloc(nbytes)
        refused.append(nbytes)
        raise EngineError("CUDA cannot allocate it")

    monkeypatch.setattr(cuda, "malloc", nearly_full)
    outputs = [session.step(IDS[:1, place])[:, np.newaxis].copy() for place in range(20, 40)]
    np.testing.assert_array_equal(np.concatenate(outputs, 1), expected[:, 20:])
    assert refused
    with pytest.raises(EngineError, match="CUDA cannot allocate it"):
        session.step(0)
    assert session.length == 40


def test_long_prompts_go_in_calls_that_the_engine_takes(cuda: HostCuda, tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx")
    expected = StreamingSession(model, batch=2).prefill(IDS)
    session = open_session(model, cuda, profile=PROFILE | {"tokens": (1, 16)})
    assert session.most_tokens == 16
    np.testing.assert_array_equal(session.prefill_last(IDS), expected[:, -1])
    with pytest.raises(InputError, match=r"input_ids of a call is 2x17"):
        session.prefill(IDS[:, :17])


def test_forks_run_in_parallel(cuda: HostCuda, tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", attention=True)
    expected = StreamingSession(model).prefill(IDS[:1])
    session = open_session(model, cuda, batch=1)
    results: dict[int, Any] = {}

    def run(fork: StreamingSession, number: int) -> None:
        results[number] = [fork.step(token).copy() for token in IDS[0]]

    threads = [threading.Thread(target=run, args=(session.fork(), number)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        np.testing.assert_array_equal(np.stack(results[number], 1), expected)


def test_options_of_onnx_runtime_have_no_use_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="providers, session_options and kernels are for ONNX Runtime"):
        StreamingSession(
            running_sum_model(tmp_path / "m.onnx"),
            providers=["CPUExecutionProvider"],
            backend=lambda *_: pytest.fail("it is not made"),
        )


@pytest.mark.machine
@pytest.mark.skipif(gpu_present(), reason="a CUDA device is here")
def test_what_cuda_refuses_is_one_clear_line(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        device_memory.cuda()
    except MissingDependencyError:
        pytest.skip("the CUDA runtime is not here")
    with pytest.raises(EngineError, match=r"^CUDA cannot make a stream: .+ \(error \d+\). Check the GPU") as caught:
        device_memory.Stream()
    with pytest.raises(EngineError, match=r"^CUDA cannot allocate 1 bytes: "):
        device_memory.DeviceBuffer()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_a_missing_cuda_runtime_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(device_memory.ctypes, "CDLL", absent)
    with pytest.raises(
        MissingDependencyError, match=r"^libcudart.so, the CUDA runtime, was not found. Install it: pip install"
    ):
        device_memory.cuda.__wrapped__()


@pytest.mark.usefixtures("tensorrt_rtx")
def test_engines_that_cannot_run_are_one_line(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "gpu_present", lambda: False)
    with pytest.raises(InputError, match=r"^there is no CUDA device here to run m.engine on. Leave the engine out"):
        tensorrt_backend(built / "m.engine")
    with pytest.raises(InputError, match=r"none.engine.*does not exist"):
        tensorrt_backend(built / "none.engine")
    monkeypatch.setattr(streaming, "gpu_present", lambda: True)
    content, manifest = (built / "m.engine").read_bytes()[:-100], json.loads((built / "m.engine.json").read_text())
    (built / "cut.engine").write_bytes(content)
    for sha256, message in (
        (manifest["sha256"], r"^engine .*cut.engine is not what .*cut.engine.json describes. Build the engine again"),
        (hashlib.sha256(content).hexdigest(), r"^cut.engine cannot be used: tensorrt-rtx .* does not load it"),
    ):
        (built / "cut.engine.json").write_text(
            json.dumps(sealed({**manifest, "sha256": sha256, "bytes": len(content)}))
        )
        with pytest.raises(InputError, match=message) as caught:
            tensorrt_backend(built / "cut.engine")
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("tensorrt_rtx")
def test_an_engine_of_another_model_is_refused(
    built: Path, cuda: HostCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built / "m.onnx"
    monkeypatch.setattr(streaming, "gpu_present", lambda: True)
    monkeypatch.setattr(streaming, "deserialize", lambda *_: HostEngine(model, cuda, PROFILE))
    backend = tensorrt_backend(built / "m.engine")
    x = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
    expected = StreamingSession(model, batch=2, kernels=False).prefill(x)
    np.testing.assert_array_equal(StreamingSession(model, batch=2, backend=backend).prefill(x), expected)
    other = running_sum_model(tmp_path / "other.onnx")
    with pytest.raises(InputError, match=r"other.onnx is not what .*m.engine.json describes. Build the engine again"):
        StreamingSession(other, batch=2, backend=backend)


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_present(), reason="no CUDA device is here")
@pytest.mark.parametrize("path", ["plugin", "function"])
@pytest.mark.parametrize("model", ["v2_heads", "rope1d", "hybrid"])
def test_a_stream_on_the_gpu_agrees_with_onnx_runtime(model: str, path: str, tmp_path: Path) -> None:
    source = small_models.hybrid() if model == "hybrid" else CHECKPOINT.parents[1] / model / "checkpoint.pt"
    pom_export.export(source, tmp_path / "m.onnx", stateful=True, mask="padding")
    pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", use_plugin=path == "plugin")
    reference = StreamingSession(tmp_path / "m.onnx", batch=2)
    session = StreamingSession(tmp_path / "m.onnx", batch=2, backend=tensorrt_backend(tmp_path / "m.engine"))
    random_state = np.random.default_rng(0)
    width = reference.model.inputs[0].axes[-1]
    tokens = random_state.integers(0, small_models.VOCABULARY, (2, 40))
    if model != "hybrid":
        tokens = random_state.standard_normal((2, 40, width)).astype(np.float32)

    def agree(actual: Any, expected: Any) -> None:
        assert np.abs(actual - expected).max() <= 2 * MODELS["float32"].relative * np.abs(expected).max()

    agree(session.prefill(tokens[:, :9], lengths=[9, 9]), reference.prefill(tokens[:, :9], lengths=[9, 9]))
    for place in range(9, 20):
        agree(session.step(tokens[:, place]), reference.step(tokens[:, place]))
    state, fork = session.snapshot(), session.fork()
    reference.restore(state)
    expected = reference.prefill(tokens[:, 20:])
    for stream in (session, fork):
        agree(stream.prefill(tokens[:, 20:]), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_present(), reason="no CUDA device is here")
def test_a_pool_on_the_gpu_agrees_with_onnx_runtime(tmp_path: Path) -> None:
    pom_export.export(CHECKPOINT.parents[1] / "v2_heads" / "checkpoint.pt", tmp_path / "m.onnx", stateful=True)
    pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "m.engine")
    alone = StreamingSession(tmp_path / "m.onnx")
    pool = StreamPool(tmp_path / "m.onnx", streams=4, backend=tensorrt_backend(tmp_path / "m.engine"))
    random_state, width = np.random.default_rng(0), alone.model.inputs[0].axes[-1]
    given = {}
    for length in (1, 9, 80):
        stream = pool.open()
        given[stream] = random_state.standard_normal((length, width)).astype(np.float32)
        stream.give(given[stream])
    while pool.waiting:
        answers = pool.tick()
        for stream, output in zip(answers.streams, answers.outputs, strict=True):
            alone.reset()
            expected = alone.prefill_last(given[stream])[0]
            assert np.abs(output - expected).max() <= 2 * MODELS["float32"].relative * np.abs(expected).max()


@pytest.mark.parametrize("mask", [False, True])
def test_a_pool_of_streams_shares_an_engine(mask: bool, cuda: HostCuda, tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", mask=mask)
    engine = HostEngine(model, cuda, PROFILE | {"batch": (1, 3), "tokens": (1, 30)})

    def backend(interface: StatefulModel, rows: int) -> TensorRtBackend:
        return TensorRtBackend(engine, interface, rows)

    pool = StreamPool(model, streams=3, backend=backend)
    prompts = [np.arange(length) % VOCABULARY for length in (1, 7, 70)]
    sequences = {}
    for prompt in prompts:
        stream = pool.open()
        stream.give(prompt)
        sequences[stream] = [*prompt]
    for number in range(8):
        answers = pool.tick()
        for stream, output in zip(answers.streams, answers.outputs, strict=True):
            expected = StreamingSession(model).prefill_last(np.array(sequences[stream]))[0]
            np.testing.assert_array_equal(output, expected)
            sequences[stream].append(number)
        pool.step(answers.streams, [number] * len(answers.streams))
    assert pool.metrics().most_streams == 3
    with pytest.raises(InputError, match=r"of a call is .*, but the engine of m.onnx takes"):
        StreamPool(model, streams=4, backend=backend)
    engine.profile = PROFILE | {"batch": (2, 3)}
    with pytest.raises(InputError, match=r"of a call is .*, but the engine of m.onnx takes"):
        StreamPool(model, streams=3, backend=backend)
    with pytest.raises(InputError, match="are for ONNX Runtime"):
        StreamPool(model, backend=backend, kernels=False)
