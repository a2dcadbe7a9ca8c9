from perf.profile import parts


def test_a_sample_counts_for_the_innermost_part_on_its_stack() -> None:
    serving = "/lib/cascade/serving"
    execute = f"execute ({serving}/triton.py:40);_answer ({serving}/triton.py:70)"
    call = f"__call__ ({serving}/stages.py:120)"
    found = parts(
        [
            f"{execute} 7",
            f"{execute};{call} 3",
            f"{execute};{call};__call__ ({serving}/onnx_graph.py:55);run (ort.py:1) 40",
            f"{execute};as_numpy (/t/triton_python_backend_utils.py:9) 2",
            "start (/lib/threading.py:1) 1",
            "",
        ]
    )
    assert found == {
        "adapter": 7,
        "stages: sorting, checks": 3,
        "graphs": 40,
        "Triton's tensors": 2,
        "other": 1,
    }
