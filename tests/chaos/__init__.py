"""Launchers that are killed, read damaged files and meet full disks: what is lost, and what is noticed.

`python -m tests.chaos out=DIR` runs it all (tests/README.md).
"""
