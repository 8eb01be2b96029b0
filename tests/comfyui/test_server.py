"""The server itself, before any node of ours: it starts, runs a core graph and stays on loopback."""


def test_core_graph_runs(server):
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": 0x3366CC}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "smoke"}},
    }
    (path,) = server.files(server.run(graph), "2")
    assert path.read_bytes().startswith(b"\x89PNG")
