"""Telling instruments, and what becomes of a failure in one."""
