"""From other libraries to arrays and back. Each adapter imports sisopt; nothing in sisopt imports an adapter."""
