"""Shared regions, atomics, MMU and TLB, bus, memory map, platform devices, device tree, image loading."""
