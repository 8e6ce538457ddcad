"""A catalogue of accelerators and machines: memory, speed, links, and prices with their dates."""

from __future__ import annotations

from dataclasses import dataclass

from tfdist.errors import ConfigError, checked_number

GB, GIB = 10**9, 2**30


@dataclass(frozen=True)
class Device:
    """One accelerator, as its data sheet has it.

    Attributes:
        name: in the catalogue.
        memory_bytes: of the device.
        flops: peak FLOPs per second of dense matrix products in bf16 or fp16.
        fp32_flops: the same in fp32, or in tf32 where the hardware has it.
        memory_bandwidth: bytes per second.
        link_bandwidth: bytes per second in each direction to the other devices of its machine.
        network_bandwidth: bytes per second in each direction to other machines, of one device.
        per_machine: devices of a machine.
        usd_per_hour: price of one device for an hour.
        priced: date and place of the price.
        source: of the data sheet.
    """

    name: str
    memory_bytes: int
    flops: float
    fp32_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    per_machine: int
    usd_per_hour: float
    priced: str
    source: str

    def __post_init__(self) -> None:
        rates = ("memory_bytes", "flops", "fp32_flops", "memory_bandwidth", "link_bandwidth")
        for name in (*rates, "network_bandwidth", "per_machine"):
            checked_number(
                f"device.{name}", getattr(self, name), lambda n: 0 < n < 1e30, "must be positive"
            )
        rule = "must be a price of at least 0"
        checked_number("device.usd_per_hour", self.usd_per_hour, lambda n: 0 <= n < 1e9, rule)


def _nvidia(name: str, gib: int, tflops: float, fp32: float, *rates: float) -> Device:
    memory, link, network, price = rates
    return Device(
        name,
        gib * GIB,
        tflops * 1e12,
        fp32 * 1e12,
        memory * GB,
        link * GB,
        network * GB,
        8,
        price,
        "2024, list price on demand of a large cloud, an eighth of a machine of eight",
        "NVIDIA's data sheet",
    )


# Dense FLOPs: NVIDIA prints twice as many with sparsity. NVLink is printed as both directions.
DEVICES = {
    each.name: each
    for each in (
        _nvidia("v100-32g", 32, 125, 15.7, 900, 150, 12.5, 3.06),
        _nvidia("a100-40g", 40, 312, 156, 1555, 300, 25, 4.10),
        _nvidia("a100-80g", 80, 312, 156, 2039, 300, 25, 5.12),
        _nvidia("h100-80g", 80, 989, 495, 3350, 450, 50, 12.29),
        _nvidia("h800-80g", 80, 989, 495, 3350, 200, 50, 12.29),
        _nvidia("h200-141g", 141, 989, 495, 4800, 450, 50, 10.60),
        Device(
            "tpu-v4",
            32 * GIB,
            275e12,
            137e12,
            1228 * GB,
            100 * GB,
            6.25 * GB,
            4,
            3.22,
            "2024, list price on demand, us-central2",
            "Google Cloud documentation, TPU v4",
        ),
    )
}


def find_device(name: str) -> Device:
    """The device of this name.

    Raises:
        ConfigError: the catalogue has none.
    """
    if name not in DEVICES:
        raise ConfigError("device", name, f"must be one of {', '.join(DEVICES)}")
    return DEVICES[name]
