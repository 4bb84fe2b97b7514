"""The commands of `minitf`, one file each, each with a click command named `command`."""
