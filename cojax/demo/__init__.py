"""An embedded example that recognises what a person wearing a smart watch is doing."""
