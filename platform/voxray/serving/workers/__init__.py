"""What the processes that do the work of the service are asked, and what they do."""
