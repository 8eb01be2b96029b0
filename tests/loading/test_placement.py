"""Placements by free memory: the first that fits, what the user asks for, and what is reported."""

import pytest
import torch
from comfyui_glm_image.pipeline.devices import capabilities
from comfyui_glm_image.pipeline.devices.capabilities import Capabilities
from comfyui_glm_image.pipeline.devices.memory import Memory
from comfyui_glm_image.pipeline.errors import DeviceError, InputError
from comfyui_glm_image.pipeline.loading import placement as P

GIB = 1 << 30


@pytest.fixture(scope="module")
def released():
    return P.CheckpointSizes.of_release()


@pytest.fixture
def machine(monkeypatch):
    """A machine with some cards, played: `machine(64, 64)` has two of 64 GiB, half a GiB of each in use."""

    def make(*cards: float, host: float = 128):
        present = [torch.device("cuda", i) for i in range(len(cards))]
        sizes = {device: Memory(int((size - 0.5) * GIB), int(size * GIB)) for device, size in zip(present, cards)}
        sizes[torch.device("cpu")] = Memory(int(host * GIB), int(host * GIB))
        best = present[0] if present else torch.device("cpu")
        can = Capabilities("cuda", bfloat16=True, fused=False, graph=True)
        cpu = Capabilities("cpu", bfloat16=True, fused=False, graph=False)
        monkeypatch.setattr(P, "resolve_device", lambda choice=None: torch.device(choice) if choice else best)
        monkeypatch.setattr(P, "memory_of", lambda device: sizes[device])
        monkeypatch.setattr(capabilities, "capabilities", lambda device: cpu if device.type == "cpu" else can)
        monkeypatch.setattr(P, "available_devices", lambda: [*present, torch.device("cpu")])

    return make


def planned(sizes, **request):
    """What is drawn, such as `height`, and the other fields of a `PlacementRequest`."""
    images = P.ImageBatch(**{name: request.pop(name) for name in P.ImageBatch.__dataclass_fields__ if name in request})
    return P.plan_placement(sizes, P.PlacementRequest(images=images, **request))


def where(placement):
    return {P.title(name): str(device) for name, device in placement.devices.items()}


def test_the_release_stays_loaded_on_a_card_of_64_gib(machine, released):
    machine(64)
    placement, needs = planned(released)
    assert set(placement.devices.values()) == {torch.device("cuda:0")}
    assert (placement.phased, placement.streamed) == (False, {})
    assert 30 * GIB < sum(needs.weights.values()) < 36 * GIB


def test_two_cards_of_32_gib_share_the_release(machine, released):
    machine(32, 32)
    placement, _ = planned(released)
    assert where(placement) == {
        "planner": "cuda:0",
        "glyph encoder": "cuda:1",
        "decoder": "cuda:1",
        "VAE": "cuda:1",
    }
    assert not placement.phased


def test_planner_and_decoder_take_turns_on_one_card_of_32_gib(machine, released):
    machine(32)
    placement, _ = planned(released)
    assert placement.phased and not placement.streamed
    assert placement.leaving("planning") == (P.GLYPH, P.DECODER, P.VAE)
    assert placement.leaving("drawing") == (P.PLANNER,)


WHOLE = {"planner_weights": "full", "decoder_weights": "full"}


def test_whole_layers_stream_on_a_card_of_16_gib_and_as_many_stay_as_fit(machine, released):
    machine(16)
    placement, needs = planned(released, **WHOLE)
    assert set(placement.streamed) == {P.PLANNER, P.DECODER}
    assert 0 < placement.streamed[P.PLANNER] < needs.layers[P.PLANNER]
    assert P.fits(placement, needs)


@pytest.mark.parametrize(
    ("card", "forms"), [(20, {}), (17, {P.PLANNER: "w8"}), (12, {P.PLANNER: "w8", P.DECODER: "w8"})]
)
def test_weights_of_8_bits_come_before_layers_that_stream(machine, released, card, forms):
    machine(card)
    placement, needs = planned(released)
    assert placement.forms == forms and placement.phased and not placement.streamed
    assert P.fits(placement, needs)


@pytest.mark.parametrize(
    ("forms", "offload", "at_1024", "at_2048"),
    [
        (("w8", "w8"), "phases", 8.9, 12.1),
        (("w8", "w8"), "none", 16.6, 19.8),
        (("w4", "w4"), "none", 11.9, 15.0),
    ],
)
def test_peaks_of_the_release_in_small_forms(machine, released, forms, offload, at_1024, at_2048):
    machine(80)
    found = []
    for side in (1024, 2048):
        weights = {"planner_weights": forms[0], "decoder_weights": forms[1]}
        placement, needs = planned(released, offload=P.Offload.of(offload), height=side, width=side, **weights)
        found.append(P.peaks(placement, needs)[torch.device("cuda:0")] / GIB)
    assert 0.85 * at_1024 < found[0] <= at_1024 and 0.85 * at_2048 < found[1] <= at_2048


@pytest.mark.parametrize("card", [12, 16, 24, 32, 48, 80])
@pytest.mark.parametrize("side", [1024, 2048])
def test_no_planner_streams_on_a_card_of_12_gib_or_more(machine, released, card, side):
    machine(card)
    placement, needs = planned(released, height=side, width=side)
    assert P.PLANNER not in placement.streamed
    assert P.fits(placement, needs)


def test_the_minutes_that_streaming_takes_are_said(machine, released):
    machine(16)
    placement, needs = planned(released, **WHOLE)
    low, high = P.streaming_minutes(placement, needs)
    moved = sum(needs.passes[name] * (needs.layers[name] - kept) for name, kept in placement.streamed.items())
    assert low == pytest.approx(moved / 25e9 / 60)
    assert 0 < low < high
    assert needs.passes[P.PLANNER] == 1024 + 256
    assert f"take about {low:.0f} to {high:.0f} minutes an image" in P.describe(placement, needs)
    assert P.streaming_minutes(*planned(released)) == (0, 0)


def test_forms_that_the_user_names_are_kept(machine, released):
    machine(64)
    placement, needs = planned(released, planner_weights="w4", decoder_weights="w8")
    assert placement.forms == {P.PLANNER: "w4", P.DECODER: "w8"} and not placement.phased
    with pytest.raises(InputError, match="planner weights 'int3' are not known; use auto, full, w8, w4"):
        P.PlacementRequest(planner_weights="int3")


def test_a_larger_batch_keeps_fewer_layers(machine, released):
    machine(16)
    one, many = (planned(released, count=count, **WHOLE)[0].streamed for count in (1, 16))
    assert many[P.PLANNER] < one[P.PLANNER]


def test_what_cannot_fit_is_refused_before_loading(machine, released):
    machine(1.5)
    with pytest.raises(DeviceError, match=r"hardly fit.*\n.*planner"):
        P.choose(released, P.PlacementRequest())


@pytest.mark.parametrize(("has_products", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_users_devices_are_honoured_on_any_machine(machine, released, monkeypatch, has_products, dtype):
    machine(64, 64)
    monkeypatch.setattr(capabilities, "multiplies_bfloat16", lambda: has_products)
    placement, _ = planned(released, planner_device="cuda:1", decoder_device="cpu")
    assert where(placement)["planner"] == "cuda:1"
    assert where(placement)["decoder"] == where(placement)["VAE"] == "cpu"
    assert placement.dtypes[P.DECODER] == placement.dtypes[P.VAE] == dtype
    assert placement.dtypes[P.PLANNER] == torch.bfloat16


@pytest.mark.parametrize(
    ("offload", "phased", "streamed"),
    [("none", False, set()), ("phases", True, set()), ("stream", True, {P.PLANNER, P.DECODER})],
)
def test_the_users_offload_is_honoured_where_all_would_fit(machine, released, offload, phased, streamed):
    machine(64)
    placement, _ = planned(released, offload=P.Offload.of(offload))
    assert (placement.phased, set(placement.streamed)) == (phased, streamed)


def test_a_wish_that_looks_too_tight_is_warned_about_and_followed(machine, released, caplog):
    machine(16)
    placement = P.choose(released, P.PlacementRequest(offload=P.Offload.NONE))
    assert not placement.phased
    assert "hardly fit" in caplog.text


def test_headroom_is_left(machine, released):
    machine(31.5)  # the weights fit with half a GiB to spare, the headroom does not
    placement, _ = planned(released)
    assert placement.phased


def test_the_estimate_names_components_devices_dtypes_and_peaks(machine, released):
    machine(32)
    lines = []
    P.choose(released, P.PlacementRequest(), report=lines.append)
    text = lines[0]
    for part in ("take turns", "planner", "glyph encoder", "decoder", "VAE", "cuda:0", "bfloat16", "peak on cuda:0"):
        assert part in text


def test_references_and_what_guidance_does_count(machine, released):
    machine(80)
    one = ((32, 32),)  # of 1024 x 1024 px
    none, some, more = (planned(released, references=one * k)[1] for k in range(3))
    kept = 2 * 30 * 4096 * 4096 * 2  # keys and values of 4096 patches in 30 layers, 1.88 GiB
    assert some.work[P.DECODER] - none.work[P.DECODER] > kept
    assert more.work[P.DECODER] - some.work[P.DECODER] > kept
    assert some.work[P.PLANNER] > 2.2 * GIB > none.work[P.PLANNER]  # the vision tokenizer visits
    assert (none.passes[P.PLANNER], some.passes[P.PLANNER]) == (1024 + 256, 1024)
    apart, joined = (planned(released, guidance=word)[1] for word in ("sequential", "batched"))
    assert joined.work[P.DECODER] > 1.5 * apart.work[P.DECODER]
    assert (apart.passes[P.DECODER], joined.passes[P.DECODER]) == (100, 50)
    assert planned(released, guidance="off", steps=8)[1].passes[P.DECODER] == 8
    assert planned(released, device="cpu")[1].work[P.DECODER] < planned(released)[1].work[P.DECODER]


def test_loras_lie_beside_weights_of_8_bits_only(machine, released):
    machine(80)
    for form, more in (("full", 0), ("w8", 2 * 1000)):
        forms = {"planner_weights": form, "decoder_weights": form}
        numbers = ({}, {P.PLANNER: 1000, P.DECODER: 1000})
        plain, lora = (planned(released, **forms, lora_numbers=each)[1] for each in numbers)
        for name in (P.PLANNER, P.DECODER):
            assert lora.weights[name] - plain.weights[name] == more


# A device for each component, as ComfyUI's node has it


def split(released, planner, decoder, glyph="cuda:0", vae="cuda:0", **more):
    names = {P.PLANNER: planner, P.GLYPH: glyph, P.DECODER: decoder, P.VAE: vae}
    devices = {name: torch.device(device) for name, device in names.items()}
    wanted = P.replace(P.Placement.split(devices), parked=True, **more)
    return wanted, P.memory_needs(released, wanted.dtypes, stored=wanted.stored, apart=False)


def test_only_components_that_share_a_card_take_turns(machine, released):
    machine(22, 20)
    wanted, needs = split(released, planner="cuda:0", decoder="cuda:1", vae="cuda:0")
    placement = P.first_that_fits(wanted, needs)
    assert placement.leaving("planning") == (P.GLYPH, P.VAE)
    assert placement.leaving("drawing") == (P.PLANNER,)
    assert placement.name == "planner and glyph encoder, VAE take turns"
    assert P.fits(placement, needs)


def test_what_takes_turns_waits_in_host_memory_if_it_is_parked(machine, released):
    machine(32)
    wanted, needs = split(released, planner="cuda:0", decoder="cuda:0")
    placement = P.first_that_fits(wanted, needs)
    assert placement.phased
    assert P.peaks(placement, needs)[torch.device("cpu")] == needs.weights[P.PLANNER]
    assert torch.device("cpu") not in P.peaks(P.replace(placement, parked=False), needs)
    assert torch.device("cpu") not in P.peaks(placement, P.replace(needs, in_files=frozenset(P.COMPONENTS)))


def test_too_little_host_memory_for_what_is_parked_does_not_fit(machine, released):
    machine(32, host=16)
    wanted, needs = split(released, planner="cuda:0", decoder="cuda:0")
    placement = P.first_that_fits(wanted, needs)
    assert set(P.shortage(placement, needs)) == {torch.device("cpu")}


def test_nothing_leaves_host_memory(machine, released):
    machine(host=128)
    wanted, needs = split(released, *["cpu"] * 4)
    placement = P.replace(wanted, phased=True)
    assert placement.leaving("planning") == ()
    assert P.peaks(placement, needs) == P.peaks(wanted, needs)


def test_stored_dtypes_count_for_weights_and_are_told(machine, released):
    machine(64)
    stored = {P.PLANNER: torch.float8_e4m3fn}
    (plain, whole), (small, half) = (split(released, "cuda:0", "cuda:0", stored=more) for more in ({}, stored))
    assert 2 * half.weights[P.PLANNER] == whole.weights[P.PLANNER]
    assert half.work == whole.work and half.weights[P.DECODER] == whole.weights[P.DECODER]
    assert "float8_e4m3fn weights" in P.describe(small, half)
    assert "float8" not in P.describe(plain, whole)


def test_opening_may_take_more_host_memory_than_running(machine, released):
    machine(64, host=16)
    wanted, needs = split(released, "cuda:0", "cuda:0")
    assert P.fits(wanted, needs)
    needs = P.replace(needs, opening=20 * GIB)
    assert P.shortage(wanted, needs) == {torch.device("cpu"): 20 * GIB - P.available(torch.device("cpu"))}


def test_the_room_given_counts_instead_of_free_memory(machine, released):
    machine(32)
    wanted, needs = split(released, "cuda:0", "cuda:0")
    placement = P.first_that_fits(wanted, needs, budget=lambda device: 60 * GIB)
    assert placement.name == "everything stays loaded"
    assert "of 60.0 GiB that may be used" in P.describe(placement, needs, lambda device: 60 * GIB)


def test_a_better_device_is_a_card_on_which_nothing_streams(machine, released):
    machine(16, 24, 8)
    wanted, needs = split(released, "cuda:0", "cuda:0")
    placement = P.first_that_fits(wanted, needs)
    assert placement.streamed
    assert P.better_device(placement, needs) is None  # the decoder's side needs more than 16 GiB, the planner more too
    machine(20, 24, 8)
    wanted, needs = split(released, "cuda:2", "cuda:0")
    placement = P.first_that_fits(wanted, needs)
    assert placement.streamed
    assert P.better_device(placement, needs) == (P.PLANNER, torch.device("cuda:1"))


def test_an_unknown_offload_is_refused():
    with pytest.raises(InputError, match="'disk' is not known; use auto, none, phases, stream"):
        P.Offload.of("disk")


def test_float16_keeps_the_vae_in_float32():
    placement = P.Placement.on(torch.device("cpu"), "fp16")
    assert placement.dtypes[P.VAE] == torch.float32
    assert placement.dtypes[P.PLANNER] == torch.float16


def test_a_checkpoint_is_measured_by_its_headers_alone(references):
    folder, pipeline = references("plain")
    model = P.CheckpointSizes.of(folder)
    for name, module in (("transformer", pipeline.transformer), ("vae", pipeline.vae)):
        assert sum(model.numbers[name].values()) == sum(p.numel() for p in module.parameters())
