"""One file per section of SPEC.md, with its checks."""
