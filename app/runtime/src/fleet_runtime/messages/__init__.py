"""What the runtime reads from, and writes into, the headers of messages."""
