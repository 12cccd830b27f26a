"""The WebSocket gateway: runs, conversations and users followed live, resumed from anywhere."""
