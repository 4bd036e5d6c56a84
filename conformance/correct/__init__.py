"""Three managers that follow every MUST rule, and differ in what the rules leave free.

The suite has to pass all of them without an exemption. They are written from SPEC.md alone, and
share with the reference nothing but its vocabulary.
"""
