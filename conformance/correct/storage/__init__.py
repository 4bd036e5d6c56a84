"""Where the managers with memory keep blocks: pages, slots in host memory, files."""
