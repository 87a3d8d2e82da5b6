"""The machine that the app runs on: its disk, memory limits, processes, locks, threads and log."""
