"""Results: answers as files, in voxray's own form and in those of other tools, and pictures of them."""
