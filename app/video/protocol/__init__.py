"""What the host and a decoder process have in common: messages, plain records, limits, shared memory."""
