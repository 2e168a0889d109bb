"""Virtqueues, the MMIO transport, one short file a back-end, and the I/O process."""
