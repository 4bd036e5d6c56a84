"""One file or folder per section of SPEC.md, with its checks."""
