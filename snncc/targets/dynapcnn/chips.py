"""The DYNAP-CNN and Speck chips as data: memories, limits, and how samna names them.

Sources, named in the comments below by the word in front:

- datasheet: SynSense, Speck dev-kit datasheet, August 2023 (2.4 layers, 2.5 readout, 3.2.4 memory, 3.2.4.6 neuron).
- samna: what the validator of samna 0.7.1.0 answers (`tests/vendor/test_samna.py` asks it again).
- sinabs: the constraint tables of `sinabs.backend.dynapcnn.chips`, 1.x for the minis and 3.1.3 for the others.
"""

from dataclasses import dataclass
from typing import Any, Literal

Ki = 1024
Json = dict[str, Any]


@dataclass(frozen=True)
class Core:
    """The memories of one core, in words: kernel of 8 bits, neuron and bias (leak) of 16 bits."""

    kernel_words: int
    neuron_words: int
    bias_words: int

    @property
    def words(self) -> tuple[int, int, int]:
        """The (kernel, neuron, bias) memory."""
        return self.kernel_words, self.neuron_words, self.bias_words


@dataclass(frozen=True)
class ChipReadout:
    """The readout block of the later chips: a spike of channel `step * i` counts for class i."""

    layer: int  # the number that a destination gives
    classes: int
    step: int


@dataclass(frozen=True)
class Chip:
    """One chip: its cores, what a configuration may hold, and the names of its samna module."""

    name: str
    cores: tuple[Core, ...]
    samna_module: str
    samna_configuration: str = "SpeckConfiguration"
    # How the keys of the module's JSON are spelled (samna: printed by each module's own to_json).
    key_style: Literal["snake", "camel"] = "snake"
    # True: samna 0.7.1.0 has the module, so its JSON is known whole and real samna has validated it.
    validated: bool = True
    readout: ChipReadout | None = None
    # The coordinate in the high bits of a neuron's address (samna: its *_to_event functions; sinabs: `io.py`).
    neuron_major: Literal["x", "y"] = "y"
    # Whether two sources may meet in the same channels of a core, which adds them (samna: 0.7.1.0 answers `Overlap`;
    # sinabs: 3.x deploys `Merge` to speck2e and speck2f so).
    adds: bool = False
    # Legal values, all inclusive.
    destinations: int = 2  # datasheet 2.4: fan-out of 2
    kernel_sizes: range = range(1, 17)  # datasheet 2.4: max kernel size 16*16; square, as samna has one number for it
    strides: tuple[int, ...] = (1, 2, 4, 8)  # datasheet 2.4: {1,2,4,8}, independent in x and y
    paddings: range = range(8)  # datasheet 2.4: [0..7], independent in x and y
    poolings: tuple[int, ...] = (1, 2, 4)  # datasheet 2.4: 1:1, 1:2, 1:4 (samna takes 8 too, no document does)
    features: range = range(1, 1025)  # datasheet 2.4: max feature number 1024
    input_sizes: range = range(1, 129)  # datasheet 2.4: max input dimension 128*128
    output_sizes: range = range(1, 65)  # datasheet 2.4: max feature output size 64*64, before the pooling
    weights: range = range(-128, 128)  # datasheet table 3: kernel, 8 bits
    biases: range = range(-(2**15), 2**15)  # datasheet table 3: leak, 16 bits
    states: range = range(-(2**15), 2**15)  # datasheet table 3: neuron, 16 bits
    # samna: 0..32767. 0 is left out here: v >= 0 stays true after v -= 0, so that each event would fire.
    thresholds_high: range = range(1, 2**15)
    # samna: -32768..0. 0 is left out here: datasheet 3.2.4.6.3, a known bug of the chip, 'choose -1 instead'.
    thresholds_low: range = range(-(2**15), 0)

    def __str__(self) -> str:
        return self.name


# datasheet table 1, and sinabs; samna: the same limits for dynapcnn, speck, speck2 and speck2b.
_NINE = (
    *(Core(16 * Ki, 64 * Ki, 1 * Ki) for _ in (0, 1, 2)),
    *(Core(32 * Ki, 32 * Ki, 1 * Ki) for _ in (3, 4)),
    *(Core(64 * Ki, 16 * Ki, 1 * Ki) for _ in (5, 6)),
    *(Core(16 * Ki, 16 * Ki, 1 * Ki) for _ in (7, 8)),
)
# sinabs, chips/speck2cmini.py and speck2dmini.py: three cores have no bias memory at all.
_FIVE = (
    Core(16 * Ki, 64 * Ki, 0),
    Core(32 * Ki, 32 * Ki, 0),
    Core(32 * Ki, 32 * Ki, 0),
    Core(64 * Ki, 16 * Ki, 1 * Ki),
    Core(16 * Ki, 16 * Ki, 1 * Ki),
)
# datasheet 2.5: 15 classes and an idle one; sinabs, tutorial 'using the readout layer': layer 12, every fourth channel.
_READOUT = ChipReadout(layer=12, classes=15, step=4)

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("dynapcnn", _NINE, "dynapcnn", "DynapcnnConfiguration", neuron_major="x"),
        Chip("speck", _NINE, "speck", neuron_major="x"),
        Chip("speck2", _NINE, "speck2"),
        Chip("speck2b", _NINE, "speck2b", key_style="camel"),
        # Only newer samna has the modules below (names: sinabs), and none of those can be had from a registry. The key
        # style is that of speck2b, their nearest relative; the emitted runner takes either style for them.
        Chip("speck2e", _NINE, "speck2e", key_style="camel", validated=False, readout=_READOUT, adds=True),
        Chip("speck2f", _NINE, "speck2f", key_style="camel", validated=False, readout=_READOUT, adds=True),
        Chip("speck2cmini", _FIVE, "speck2cMini", key_style="camel", validated=False),
        Chip("speck2dmini", _FIVE, "speck2dMini", key_style="camel", validated=False),
    )
}


def log2_ceil(n: int) -> int:
    """The address bits for n >= 1 things: ceil(log2(n))."""
    return (n - 1).bit_length()


def kernel_words(features_in: int, features_out: int, kernel: int) -> int:
    """Kernel memory of a core in words: c * 2^(ceil(log2(k*k)) + ceil(log2(f))). Source: datasheet 3.2.4.1, K_MT."""
    return features_in << (log2_ceil(kernel * kernel) + log2_ceil(features_out))


def neuron_words(features_out: int, height: int, width: int) -> int:
    """Neuron memory of a core in words: f * 2^(ceil(log2(h)) + ceil(log2(w))). Source: datasheet 3.2.4.1, N_MT.

    Height and width are those of the convolution's output, before any pooling.
    """
    return features_out << (log2_ceil(height) + log2_ceil(width))


def bias_words(features_out: int, has_bias: bool) -> int:
    """Bias (leak) memory of a core in words: one a feature, none without bias. Source: sinabs, `memory_summary`."""
    return features_out if has_bias else 0


def cereal_array(items: list[Any]) -> Json:
    """A fixed-size array in the JSON of C++'s cereal: an object with the keys value0, value1 and so on."""
    return {f"value{i}": item for i, item in enumerate(items)}


_PARTS = ("kernel", "leak", "neuron")


def periphery(chip: Chip) -> Json:
    """What stands around the cores. Source: the default-constructed configuration of samna 0.7.1.0's module.

    One value differs from samna's default: `pass_sensor_events` is off, so that the pixels send nothing while the host
    does. For a chip that samna 0.7.1.0 has no module for, only fields that the datasheet names are written, and the
    emitted runner lays them over the defaults of the samna that it finds.
    """
    dvs_layer = {
        "destinations": cereal_array([{"layer": 0, "enable": False}] * 2),
        "merge": False,
        "mirror": {"x": False, "y": False},
        "mirror_diagonal": False,
        "pass_sensor_events": False,
        "monitor_enable": False,
        "on_channel": True,
        "off_channel": True,
        "pooling": {"x": 1, "y": 1},
        "cut": {"x": 127, "y": 127},
        "origin": {"x": 0, "y": 0},
    }
    if not chip.validated:
        return {"dvs_layer": dvs_layer}
    dvs_layer["monitor_sensor_enable"] = False
    low_pass = "low_pass_filter32_not16" if chip.name == "speck2b" else "low_pass_filter_32_not_16"
    readout = {"threshold": 0, "low_pass_filter_disable": False, low_pass: True, "input_address_interpretation": 0}
    skips = ("enable_kernel_skip_memory_cell", "enable_leak_skip_memory_cell", "enable_neuron_skip_memory_defect")
    neuron_clocks = cereal_array([{"clock_delay": 4, "reset_delay": 7}] * 16)
    if chip.name in {"dynapcnn", "speck"}:
        currents = {f"current_control_p{i}": 0 for i in range(3, 8)}
        timing = {"clock_pulse": 16, "clock_setup": 16, "macro_read": 1}
        settings = {**dict.fromkeys(skips, False), "kernel": timing, "leak": timing, "neuron": timing}
        bist = {"memory_sub_block": 0, "word_part": 0, "read_timing": 1, "enable": False}
        probes = {f"{part}{suffix}": value for part in _PARTS for suffix, value in (("", 0), ("_enable", False))}
        return {
            "dvs_layer": {**dvs_layer, "sensor_timing": 64, **currents},
            "readout": readout,
            "factory_settings": {
                "aer_hs_timing_for_kill_switches": 0,
                "cnn_layers_settings": cereal_array([settings] * 9),
                "readout": neuron_clocks,
                "io_drive_strength": 4,
                "monitor_input_enable": True,
            },
            "debug_config": {
                "cnn_layers_config": cereal_array([{"probe_points": probes, **dict.fromkeys(_PARTS, bist)}] * 9),
                **dict.fromkeys(("dvs_probe_point", "readout", "router0", "router1", "router2", "router3"), 0),
            },
        }
    b = chip.name == "speck2b"
    clocks = {"kernel": (32, 16), "leak": (16, 32), "neuron": (16, 0)}
    timings = {part: {"clock_pulse": p, "clock_setup": s, "macro_read": 1} for part, (p, s) in clocks.items()}
    controls = (0, 0, 9, 0, 0) if b else (0, 10, 14, 12, 15)
    outs = (3, 3, 3, 3) if b else (28, 28, 28, 32)
    scans = {f"{part}_scan_en": False for part in (*_PARTS, "decoder")}
    return {
        "dvs_layer": dvs_layer,
        **({"dvs_filter": {"filter_bypass": True, "threashold": 5, "filter_size": {"x": 1, "y": 1}}} if b else {}),
        "readout": {**readout, "bypass_enable": False, "p2s_input_selection": 0},
        "factory_config": {
            "cnn_layers": cereal_array([{**dict.fromkeys(skips, False), **timings}] * 9),
            "neurons": neuron_clocks,
            "out_data_request_delay": 16,
            "monitor_input_enable": False,
            "s2p_monitor_enable": False,
            "delay_handshake_to_decoder": 6,
            "decoder_delay": 2,
            "out_num_channels": 1,
            "concat_enable": True,
            "io_pin_pull_down_enable": True,
            "io_test_pin_pull_down_enable": False,
            "dvs": {
                "sensor_config_timing": 0,
                **{f"current_control_p{i}": value for i, value in zip(range(3, 8), controls, strict=True)},
                **{f"current_out{i}": value for i, value in zip(range(1, 5), outs, strict=True)},
            },
        },
        "debug_config": {
            "dvs": {
                "scan_chain_enable": False,
                "test_enable": False,
                "sensorEnableStartup1": True,  # samna spells these two so in either style
                "sensorEnableStartup2": False,
                **({"sensor_pulse": True, "sensor_sel_pulse": False, "dig_sensor_test": 0} if b else {}),
            },
            "input_interface": {"in_interface_scan_chain_enable": False, "router_scan_chain_enable": False},
            "cnn_layers_config": cereal_array([{**scans, **{f"{part}_bist_read_timing": 1 for part in _PARTS}}] * 9),
            "readout": {"readout_scan_en": False},
        },
    }
