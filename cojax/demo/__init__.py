"""An embedded example: what a person wearing a smart watch is doing."""
