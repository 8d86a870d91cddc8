"""One door for all embedding: dedupe, pack, call, check, restore order."""
