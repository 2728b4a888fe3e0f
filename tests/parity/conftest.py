"""Files that need the second environment (`make parity`) are scripts, not tests."""

collect_ignore = ["compare_mobileclip.py", "make_mobileclip_golden.py", "oracles.py", "time_mobileclip.py"]
