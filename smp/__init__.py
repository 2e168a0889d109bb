"""The processor and the machine: rows, engine, traps, CSRs, SBI, processes, command line."""
