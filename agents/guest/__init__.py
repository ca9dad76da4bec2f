"""What runs inside microVMs: kernel, guest agent and the initramfs that brings them together, as one artifact with a version."""
