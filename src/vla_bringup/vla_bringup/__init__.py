"""Launch files, robot profiles, the demo and the other commands of ./vla."""
