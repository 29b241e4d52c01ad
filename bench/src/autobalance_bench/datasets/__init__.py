"""Named image sets and other published data, read as their authors laid them out."""
