"""vitrail beside what a user would pick instead on a CPU. `python -m bench.peers`; docs/benchmark.md tells how."""
