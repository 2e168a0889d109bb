"""Feature bits that belong to rings and transport, whatever the device (virtio 1.3, 6)."""

INDIRECT_DESC, EVENT_IDX = 1 << 28, 1 << 29
VERSION_1, ACCESS_PLATFORM, RING_PACKED, IN_ORDER, RING_RESET = (1 << bit for bit in (32, 33, 34, 35, 40))
