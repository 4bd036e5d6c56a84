"""Broken managers, each with a bug that really happened; the suite must catch them all.

A specimen is the reference with a line or two that read differently, or with another class in the
place of one of its own, and only while that manager runs: see :mod:`.change`. To add one, write a
:class:`.Specimen` into the file of its kind, name the check that catches it, and renew docs/zoo.md.
"""
