"""One file per kernel; each holds a `KERNEL`."""
